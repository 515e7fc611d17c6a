"""What is refused before anything is sampled: settings of the Trainer, devices, weights."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from games.errors import InputError
from llm.config.loading import load_config
from llm.config.schema import LoraConfig, ModelConfig
from llm.judges.build import build_judge
from llm.policy.devices import named_device
from llm.policy.model import Policy
from llm.run.checks import check_settings
from llm.train import main
from tests.tiny_judges import save_reward_model
from tests.tiny_models import save_causal_lm


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("train.schedule=warmup_stable_decay", r"train\.schedule=warm.* .*num_decay_steps"),
        ("train.schedule=straight", r"train\.schedule=straight "),
        ("train.optimizer=lomo", r"train\.optimizer=lomo .*pip install lomo"),
        ("train.optimizer=adamw_bnb_8bit", r"train\.optimizer=adamw_bnb_8bit .*bitsandbytes"),
        ("train.report_to=nope", r"train\.report_to=nope: not supported"),
        ("train.learning_rate=1e308", r"train\.learning_rate=1e\+308 "),
        (
            "train.arguments.dataloader_num_workers=-1",
            r"train\.arguments\.dataloader_num_workers=-1 .*-negative",
        ),
        ("train.arguments.remove_unused_columns=true", r"train\.arguments\.remove_unused_columns"),
        ("train.arguments.lr_scheduler_kwargs={a: 1}", r"train\.arguments\.lr_scheduler_kwargs="),
        ("train.arguments.eval_strategy=steps", r"train\.arguments\.eval_strategy=steps "),
        ("train.arguments.speed=1", r"train\.arguments\.speed: unknown"),
        ("train.arguments.push_to_hub=true", r"train\.arguments\.push_to_hub: .*leave it out"),
        ("train.arguments.output_dir=x", r"train\.arguments\.output_dir: .*leave it out"),
        ("model.device=xyz", r"model\.device=xyz: not a device"),
        ("model.device=meta", r"model\.device=meta: not a device"),
    ],
)
def test_settings_of_the_trainer_are_tried_out(word: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^(train: )?{message}") as caught:
        check_settings(load_config("embedded-game", [word]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("train.schedule=cosine", "train.warmup=0.1", "train.gradient_checkpointing=true"),
        (
            "train.schedule=warmup_stable_decay",
            "train.arguments={lr_scheduler_kwargs: {num_decay_steps: 1}}",
        ),
        ("train.arguments={max_steps: 2, neftune_noise_alpha: 5}",),
    ],
)
def test_settings_that_work_leave_no_trace(words: tuple[str, ...]) -> None:
    config = load_config("embedded-game", ["seed=5", *words])
    before = torch.random.get_rng_state(), random.getstate()
    check_settings(config)
    after = torch.random.get_rng_state(), random.getstate()
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.attn=nope", "model.attn=nope: cannot be used"),
        ("lora.target_modules='('", "lora.target_modules: "),
        ("threads=100000", "threads: must be at most"),
        ("seed=4294967296", "seed: must be at most"),
    ],
)
@pytest.mark.parametrize("extra", [(), ("--dry-run",)])
def test_settings_of_the_model_are_refused_before_a_run(
    word: str, message: str, extra: tuple[str, ...], tmp_path: Path, capsys
) -> None:
    words = ["--config", "embedded-game", word, f"output_dir={tmp_path / 'run'}", *extra]
    assert main(words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def model(path: Path, **settings: str) -> Policy:
    return Policy.load(
        ModelConfig(path=str(path), device="cpu", **settings), LoraConfig(rank=2, alpha=2)
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(value: float, tmp_path: Path) -> None:
    whole = save_causal_lm(tmp_path / "base")
    model(whole).save_adapter(tmp_path / "adapter")
    damage(tmp_path / "adapter" / "adapter_model.safetensors", value)
    with pytest.raises(InputError, match=r"adapter_model\.safetensors: .* NaN or infinity"):
        model(whole, adapter=str(tmp_path / "adapter"))
    damage(whole / "model.safetensors", value)
    with pytest.raises(InputError, match=r"model\.path=.* contains NaN or infinity"):
        model(whole)
    judge = save_reward_model(tmp_path / "judge")
    damage(judge / "model.safetensors", value)
    with pytest.raises(InputError, match=r"judge: .* contains NaN or infinity"):
        build_judge("reward_model", str(judge), device="cpu")


def damage(file: Path, value: float) -> None:
    """Sets one entry of one weight."""
    weights = load_file(file)
    weights[max(weights)].view(-1)[-1] = value
    save_file(weights, file, metadata={"format": "pt"})


def test_a_dry_run_reads_the_headers_of_the_weights(tmp_path: Path, capsys) -> None:
    base = save_causal_lm(tmp_path / "base", max_position_embeddings=512)
    file = base / "model.safetensors"
    words = [
        *("--config", "embedded-text", "--dry-run", f"model.path={base}"),
        f"output_dir={tmp_path / 'run'}",
    ]
    assert main(words) == 0
    weights = load_file(file)
    name = next(name for name in weights if "q_proj" in name)
    save_file(weights | {name: weights[name][:-1].clone()}, file, metadata={"format": "pt"})
    assert main(words) == 2
    assert f"{name} has the shape (31, 32) in model.safetensors, and (32, 32)" in (
        capsys.readouterr().err
    )
    file.write_bytes(file.read_bytes()[:-100])
    assert main(words) == 2
    assert f"model.path={base}: cannot be read" in capsys.readouterr().err
    file.unlink()
    for index in ("{}", "[]", '{"weight_map": {"a": "b.safetensors"}}', "{"):
        (base / "model.safetensors.index.json").write_text(index)
        assert main(words) == 2
        assert f"model.path={base}: " in capsys.readouterr().err


def test_an_end_token_that_is_no_token_is_named(tmp_path: Path) -> None:
    base = save_causal_lm(tmp_path / "base")
    for value in ('"x"', "[1, null]", '{"a": 1}', "-5"):
        (base / "generation_config.json").write_text(f'{{"eos_token_id": {value}}}')
        with pytest.raises(InputError, match=r"model\.path=.*"):
            model(base)


def test_judges_have_devices(tmp_path: Path) -> None:
    for name in ("meta", "xyz"):
        with pytest.raises(InputError, match=f"judge.device={name}: not a device"):
            named_device("judge.device", name)
    assert named_device("judge.device", "cpu").type == "cpu"
