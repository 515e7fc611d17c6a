"""What the trainer chooses by name: each name with the import path of the object behind it.

Only strings, so that `--help` lists the names without importing torch. Update rules and fits are
registered with their definitions, in `solvers.rules` and `solvers.fits`.
"""

from __future__ import annotations

# judge.kind -> a class with the interface `llm.judges.model.JudgeKind`
JUDGES = {
    "pairrm": "llm.judges.pairrm:PairRM",
    "pair_preference": "llm.judges.pair_preference:PairPreference",
    "reward_model": "llm.judges.reward_model:RewardModel",
    "callable": "llm.judges.function:FunctionJudge",
    "embedded": "llm.embedded.judges:EmbeddedJudge",
}

# sample.engine -> a factory (policy, sample configuration) -> `llm.sampling.engine.Engine`
ENGINES = {
    "transformers": "llm.sampling.transformers_engine:TransformersEngine",
    "vllm": "llm.sampling.vllm_engine:VLLMEngine",
}
