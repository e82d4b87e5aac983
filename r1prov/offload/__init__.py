"""Where the model lies on a machine: pure arithmetic, no I/O."""

from r1prov.offload.outcome import Device
from r1prov.offload.plan import DYNAMIC_QUANTS, Plan, best_on_gpus, model_of, placeable, plan, plan_model, wanted

__all__ = ["DYNAMIC_QUANTS", "Device", "Plan", "best_on_gpus", "model_of", "placeable", "plan", "plan_model", "wanted"]
