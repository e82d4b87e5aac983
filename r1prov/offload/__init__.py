"""Where the model lies on a machine: pure arithmetic, no I/O."""

from r1prov.offload.plan import DYNAMIC_QUANTS, Device, Plan, best_on_gpus, plan

__all__ = ["DYNAMIC_QUANTS", "Device", "Plan", "best_on_gpus", "plan"]
