"""Where to cut a model and on which devices to run the stages: exact, and able to say why.

Pure: profiles, clusters and requests in, plans out.
"""

from vaultline.planner.explain import Explanation, RunnerUp, StageExplanation, explain
from vaultline.planner.plan import make_plan, plan_request
from vaultline.planner.problem import Release, Settings
from vaultline.planner.request import Part, PlanRequest, parse_partition

__all__ = [
    "Explanation",
    "Part",
    "PlanRequest",
    "Release",
    "RunnerUp",
    "Settings",
    "StageExplanation",
    "explain",
    "make_plan",
    "parse_partition",
    "plan_request",
]
