"""The offload plan: which part of a model lies on which card and which in RAM. It is pure arithmetic, without I/O."""

from r1prov.offload.outcome import Device
from r1prov.offload.plan import DYNAMIC_QUANTS, Plan, best_on_gpus, model_of, placeable, plan, plan_model, wanted

__all__ = ["DYNAMIC_QUANTS", "Device", "Plan", "best_on_gpus", "model_of", "placeable", "plan", "plan_model", "wanted"]
