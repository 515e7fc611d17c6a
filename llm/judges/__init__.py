"""Judges: B prompts, B x K responses -> preferences (B, K, K).

`judge(prompts, responses)[b, i, j]` is the probability in [0, 1] that response i to prompt b is
preferred to response j: float64, P + P^T = 1 exactly, 1/2 on the diagonal. A prompt is a string, or
a list of chat messages `{"role", "content"}` that ends with the user's.

    pairrm           PairRM as llm-blender saves it, or PairRM-hf; both orders averaged
    pair_preference  a causal LM that answers A or B (RLHFlow); both orders averaged
    reward_model     a sequence classifier with one output (Bradley-Terry)
    callable         a Python function
    embedded         a judge of the package, by name

The kinds are registered in `llm.config.registries.JUDGES`; `build_judge` in `llm.judges.build`
builds one.
"""
