"""Runs that are extended, interrupted by signals, damaged, or resumed over other data."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from contextlib import suppress
from pathlib import Path

import pytest

from games.errors import InputError
from games.startup import Stop
from llm import load_config, run_training
from llm.policy import fitting
from llm.policy.fitting import check_losses
from llm.policy.interrupts import check_interrupted, interruptible
from llm.run.lifecycle import Interrupted
from llm.sampling.responses import with_answers
from llm.train import main
from tests.test_train import SMALL, adapter, run

TINY = (*SMALL, "sample.batch_size=40")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm.run.session.draw_curves", lambda *given: False)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "three"
    run(path, "iterations=3")
    return path


# --- longer and shorter ---------------------------------------------------------------------------


def test_an_extended_run_ends_where_a_run_of_that_length_ends(tmp_path: Path, three: Path) -> None:
    path = tmp_path / "run"
    run(path, "iterations=1")
    first = adapter(path)
    run(path, "iterations=3")
    assert adapter(path) == adapter(three) != first
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    expected = [json.loads(line) for line in (three / "metrics.jsonl").read_text().splitlines()]
    for row, other in zip(rows, expected, strict=True):
        assert row["kl_to_reference"] == other["kl_to_reference"]
    assert load_config(path / "config.yaml").iterations == 3


def test_an_extension_that_was_killed_at_once_is_continued(tmp_path: Path, three: Path) -> None:
    path = tmp_path / "run"
    run(path, "iterations=1")
    shutil.rmtree(path / "final")  # the first thing that an extension does
    run(path, "iterations=3")
    assert adapter(path) == adapter(three)


def test_a_run_is_not_shortened(three: Path) -> None:
    with pytest.raises(InputError, match=r"iterations=2: .* has iterations=3; .* not shortened"):
        run(three, "iterations=2")


def test_an_empty_final_directory_is_not_a_finished_run(tmp_path: Path, three: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(three, path)
    shutil.rmtree(path / "final")
    (path / "final").mkdir()
    run(path, "iterations=3")
    assert adapter(path) == adapter(three)


# --- the same data --------------------------------------------------------------------------------


def test_prompts_that_changed_under_a_run_are_refused(tmp_path: Path) -> None:
    """On either side: of the responses that are trained on, and of those that are evaluated."""
    data = tmp_path / "prompts.jsonl"
    texts = [
        f"Tell me about {word}." for word in ("tea", "birds", "stars", "clocks", "rain", "ice")
    ]

    def write(*texts: str) -> None:
        data.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))

    words = ["iterations=2", "samples_per_prompt=2", "sample.max_new_tokens=4", "chunk_size=2"]
    words += ["train.batch_size=2", "train.micro_batch_size=2", f"data.path={data}"]
    words += ["data.prompts_per_iteration=null", "data.shuffle=false", "train.save_steps=50"]
    words += ["evaluation.prompts=2", f"output_dir={tmp_path / 'run'}"]
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[0]['content'] }}")
    words.append(f"data.chat_template={template}")
    write(*texts)
    config = load_config("embedded-text", words)
    run_training(config)
    path = tmp_path / "run"
    shutil.rmtree(path / "final")
    shutil.rmtree(path / "iterations" / "001" / "adapter")
    shutil.rmtree(path / "iterations" / "002")
    for changed in ([*texts[:3], "Now what?", *texts[4:]], [*texts[:5], "Now what?"]):
        write(*changed)
        with pytest.raises(InputError, match=r"prompts have changed .* now it is 'Now what\?'"):
            run_training(config)
    write(*texts)
    template.write_text("Q: {{ messages[0]['content'] }}")
    with pytest.raises(InputError, match=r"data\.chat_template: the template .* has changed"):
        run_training(config)
    template.write_text("{{ messages[0]['content'] }}")
    run_training(config)
    assert (path / "final").is_dir()


def test_prompts_that_changed_after_draws_of_the_opponent_are_refused(
    tmp_path: Path, monkeypatch
) -> None:
    """Those of SPIN are stored before the responses that contain them."""
    data = tmp_path / "data.jsonl"

    def write(*prompts: str) -> None:
        rows = [{"prompt": prompt, "answer": "ab"} for prompt in prompts]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    words = ["rule=spin", "rule_options={memory: 2}", "fit=logistic", "eta=1", "judge.kind=none"]
    words += ["regularizer=null", "tau=null", "data.answer=answer", f"data.path={data}"]
    words += ["data.prompts_per_iteration=4", "data.shuffle=false", "train.batch_size=4"]
    words += ["train.micro_batch_size=4", "iterations=2", "samples_per_prompt=2"]
    write("ab", "ba", "aab", "bba")
    with monkeypatch.context() as patched:
        patched.setattr("llm.sources.demonstrations.with_answers", interrupt_in_second)
        with pytest.raises(Interrupted):
            run(tmp_path / "run", *words)
    assert list((tmp_path / "run").glob("iterations/001/drawn/001/*.jsonl"))
    for stage in ("reference", "iterations/*/evaluation", "iterations/*/responses"):
        for directory in (tmp_path / "run").glob(stage):
            shutil.rmtree(directory)
    write("ab", "ba", "aab", "bb")
    with pytest.raises(InputError, match=r"drawn/00\d/.* has the prompt 'bba', now it is 'bb'"):
        run(tmp_path / "run", *words)
    write("ab", "ba", "aab", "bba")
    run(tmp_path / "run", *words)
    assert (tmp_path / "run" / "final").is_dir()


def interrupt_in_second(prompts, drawn, _count=iter((False, True))):  # noqa: B008 - one test
    """`with_answers`, of the first iteration only."""
    if next(_count):
        raise KeyboardInterrupt
    return with_answers(prompts, drawn)


# --- damaged pieces -------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def not_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe" + path.read_bytes())


def another_digit(path: Path) -> None:
    text = path.read_text()
    changed = re.sub(r"(?<=[ \[])\d", lambda digit: str((int(digit[0]) + 1) % 10), text, count=1)
    assert json.loads(changed.splitlines()[0]) != json.loads(text.splitlines()[0])
    path.write_text(changed)


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("damage", [cut, empty, not_text, another_digit, a_directory, a_pipe])
def test_a_damaged_chunk_is_computed_again(tmp_path: Path, three: Path, damage) -> None:
    """Of any stage: the iteration then ends in the same adapter."""
    path = tmp_path / "run"
    shutil.copytree(three, path)
    shutil.rmtree(path / "final")
    shutil.rmtree(path / "iterations" / "002" / "adapter")
    for stage in ("responses", "preferences"):
        damage(path / "iterations" / "002" / stage / "00001.jsonl")
        if damage is not another_digit:  # the hash is of text
            damage(path / "iterations" / "002" / stage / "00002.sha256")
    run(path, "iterations=3")
    assert adapter(path) == adapter(three)


def test_a_damaged_adapter_or_table_is_named_with_what_to_do(tmp_path: Path, three: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(three, path)
    shutil.rmtree(path / "final")
    shutil.rmtree(path / "iterations" / "002" / "adapter")
    last = path / "iterations" / "001" / "adapter"
    cut(last / "adapter_model.safetensors")
    with pytest.raises(Interrupted, match=rf"damaged; delete {last} to train it again"):
        run(path, "iterations=3")
    shutil.rmtree(last)
    shutil.rmtree(path / "iterations" / "002")
    run(path, "iterations=3")
    assert adapter(path) == adapter(three)
    shutil.rmtree(path / "final")
    cut(path / "metrics.jsonl")
    with pytest.raises(InputError, match=r"metrics.jsonl:1: is damaged"):
        run(path, "iterations=3")
    (path / "metrics.sha256").unlink()
    for text in ("", '{"iteration": "0"}\n'):  # nothing of it, or no number
        (path / "metrics.jsonl").write_text(text)
        with pytest.raises(InputError, match=r"metrics.jsonl.* is damaged"):
            run(path, "iterations=3")


def no_object(path: Path) -> None:
    path.write_text("[]")


@pytest.mark.parametrize("name", ["used.json", "losses.json", "metrics.jsonl"])
@pytest.mark.parametrize("damage", [Path.unlink, no_object, another_digit, a_directory])
def test_damaged_numbers_of_an_iteration_are_named(
    tmp_path: Path, three: Path, name: str, damage
) -> None:
    """They would be shown, and counted for budgets, without a word."""
    path = tmp_path / "run"
    shutil.copytree(three, path)
    shutil.rmtree(path / "final")
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join(lines[:3]))  # π_3 is not measured yet
    file = path / name if name == "metrics.jsonl" else path / "iterations" / "002" / name
    damage(file)
    with pytest.raises((InputError, Interrupted), match=rf"{name}.* is damaged"):
        run(path, "iterations=3")


@pytest.mark.parametrize("where", ["iterations", "iterations/002", "iterations/002/responses"])
def test_a_file_in_place_of_a_directory_is_named(tmp_path: Path, three: Path, where: str) -> None:
    path = tmp_path / "run"
    shutil.copytree(three, path)
    for part in ("final", where):
        shutil.rmtree(path / part)
    shutil.rmtree(path / "iterations" / "002" / "adapter", ignore_errors=True)
    (path / where).write_text("x")
    said = f"{path / where} is damaged (.*); delete it; the same command continues"
    with pytest.raises(Interrupted, match=said):
        run(path, "iterations=3")
    (path / where).unlink()
    run(path, "iterations=3")
    assert adapter(path) == adapter(three)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [cut, empty, flip])
def test_a_damaged_final_adapter_is_not_a_finished_run(tmp_path: Path, three: Path, damage) -> None:
    path = tmp_path / "run"
    shutil.copytree(three, path)
    damage(path / "final" / "adapter_model.safetensors")
    run(path, "iterations=3")
    assert adapter(path) == adapter(three)


def test_a_flipped_bit_in_an_adapter_is_noticed(tmp_path: Path, three: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(three, path)
    shutil.rmtree(path / "final")
    shutil.rmtree(path / "iterations" / "002" / "adapter")
    flip(path / "iterations" / "001" / "adapter" / "adapter_model.safetensors")
    with pytest.raises(Interrupted, match=r"checksums do not match: .* delete"):
        run(path, "iterations=3")


def test_runs_of_earlier_versions_have_no_checksums(tmp_path: Path, three: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(three, path)
    for file in path.rglob("checksums.json"):
        file.unlink()
    shutil.rmtree(path / "iterations" / "002" / "adapter")
    shutil.rmtree(path / "final")
    run(path, "iterations=3")
    assert adapter(path) == adapter(three)


@pytest.mark.parametrize(
    ("what", "damage"),
    [
        ("optimizer.pt", Path.unlink),
        ("optimizer.pt", cut),
        ("scheduler.pt", Path.unlink),
        ("adapter_model.safetensors", flip),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, monkeypatch, what, damage) -> None:
    """The fit starts again from an earlier one, or from its beginning: to the same bytes."""
    run(tmp_path / "whole", "iterations=1")
    path, genuine = tmp_path / "run", fitting._Checkpoints.on_step_end

    def stopping(self, args, state, control, **rest):
        if state.global_step == 3:
            raise KeyboardInterrupt
        genuine(self, args, state, control, **rest)

    with monkeypatch.context() as patched:
        patched.setattr(fitting._Checkpoints, "on_step_end", stopping)
        with pytest.raises(Interrupted):
            run(path, "iterations=1")
    (checkpoint,) = (path / "iterations" / "000" / "trainer").glob("checkpoint-*")
    damage(checkpoint / what)
    run(path, "iterations=1")
    assert adapter(path) == adapter(tmp_path / "whole")


# --- signals and unexpected errors ----------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_a_run_in_one_line(
    tmp_path: Path, three: Path, kind: signal.Signals
) -> None:
    path = tmp_path / "run"
    words = [*SMALL, "iterations=3", f"output_dir={path}"]
    process = subprocess.Popen(
        command(*words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear,
    )
    while not (path / "iterations" / "000" / "trainer").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(kind)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert len(said.splitlines()) == 1
    assert "interrupted; the same command continues" in said
    assert "stopped: interrupted" in (path / "run.log").read_text()
    run(path, "iterations=3")
    assert adapter(path) == adapter(three)


@pytest.mark.parametrize("module", ["solvers", "llm.train", "llm.compare"])
def test_ctrl_c_during_the_imports_is_one_line(tmp_path: Path, module: str) -> None:
    (tmp_path / "numpy.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", module],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        preexec_fn=hear,
    )
    assert (done.returncode, done.stderr) == (130, "error: interrupted\n")


def hear() -> None:
    """Background jobs of a shell ignore SIGINT, and so do the processes that they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_signal_before_the_run_has_the_exit_code_of_shells(monkeypatch, capsys) -> None:
    monkeypatch.setattr("llm.train.find_run", lambda config: signal.raise_signal(signal.SIGINT))
    assert main(["--config", "embedded-game"]) == 130
    assert capsys.readouterr().err == "error: interrupted before the run was started\n"


def test_a_signal_during_the_fit_leaves_a_checkpoint(tmp_path: Path, monkeypatch) -> None:
    genuine = fitting._Checkpoints.on_step_end

    def signalled(self, args, state, control, **rest):
        if state.global_step == 3:  # save_steps is 2
            os.kill(os.getpid(), signal.SIGTERM)
        genuine(self, args, state, control, **rest)

    monkeypatch.setattr(fitting._Checkpoints, "on_step_end", signalled)
    with pytest.raises(Interrupted, match="interrupted"):
        run(tmp_path / "run")
    trainer = tmp_path / "run" / "iterations" / "000" / "trainer"
    assert (trainer / "checkpoint-3" / fitting.COMPLETE).exists()


def test_an_unexpected_error_is_one_line_and_a_file(tmp_path: Path, monkeypatch, capsys) -> None:
    def broken(*args, **options):
        raise KeyError("surprise")

    monkeypatch.setattr("llm.sources.stages.judge_responses", broken)
    words = ["--config", "embedded-game", *SMALL, f"output_dir={tmp_path / 'run'}"]
    assert main(words) == 70
    said = capsys.readouterr().err  # in this process with transformers' progress bars
    assert "Traceback" not in said
    line = said.splitlines()[-1]
    assert "KeyError: 'surprise'" in line
    file = Path(line.split("traceback in ")[1].split(";")[0])
    assert "raise KeyError" in file.read_text()
    file.unlink()
    monkeypatch.undo()
    run(tmp_path / "run")


def leaving(prompts, responses):
    sys.exit(0)


def test_a_judge_that_exits_does_not_end_a_run_with_0(tmp_path: Path, capsys) -> None:
    words = [*SMALL, "judge.kind=callable", "judge.path=tests.test_resume:leaving"]
    assert main(["--config", "embedded-game", *words, f"output_dir={tmp_path / 'run'}"]) == 1
    assert "SystemExit" in capsys.readouterr().err
    assert not (tmp_path / "run" / "final").exists()


def test_a_loss_that_grows_without_bound_is_not_trained_on() -> None:
    """With the step where it began; large losses that do not grow are those of large targets."""
    check_losses([2.5e5, 2e5, 3e5], start=2e5)
    check_losses([1e-9, 1e-3], start=1e-9)  # noise at a loss that has converged
    with pytest.raises(FloatingPointError, match=r"from 1.6 to 1.7e\+03 at step 2 .* lower eta"):
        check_losses([1.6, 1.7e3, 4.6e12], start=1.6)
    with pytest.raises(FloatingPointError, match="became NaN or infinite at step 2 of"):
        check_losses([1.6, float("nan"), 1.0], start=1.6)
    with pytest.raises(FloatingPointError, match="became NaN or infinite at step 1 of"):
        check_losses([float("inf")], start=1.6)


@pytest.mark.parametrize("rate", [3, 1e3])
def test_a_learning_rate_that_is_too_large_stops_the_run(tmp_path: Path, rate: float) -> None:
    """In the four steps of an iteration, as seen with a real model: 1.6 -> 4.6e12, no NaN."""
    with pytest.raises(Interrupted, match=r"the loss grew from 0\.\d+ to .* at step [1-4] of"):
        run(tmp_path / "run", f"train.learning_rate={rate}")
    assert not (tmp_path / "run" / "iterations" / "000" / "adapter").exists()


def test_a_gradient_that_is_no_number_in_the_last_step_is_noticed(
    tmp_path: Path, monkeypatch
) -> None:
    """No loss is computed with the weights that it leaves."""
    genuine, calls = fitting.batch_loss, itertools.count(1)

    def loss(model, batch, *rest):
        value = genuine(model, batch, *rest)
        if next(calls) == 8:  # four steps of two micro-batches
            weight = next(p for p in model.parameters() if p.requires_grad)
            value = value + (0 * weight.sum()).sqrt()  # 0, with a derivative of 0 times infinity
        return value

    monkeypatch.setattr(fitting, "batch_loss", loss)
    with pytest.raises(Interrupted, match=r"weights became NaN .* last step; lower eta"):
        run(tmp_path / "run")
    assert not (tmp_path / "run" / "iterations" / "000" / "adapter").exists()


# --- streams --------------------------------------------------------------------------------------


def command(*words: str, module: str = "llm.train") -> list[str]:
    return [sys.executable, "-m", module, "--config", "embedded-game", *words]


@pytest.mark.parametrize("redirection", ["> /dev/full", ">&-"])
def test_an_output_that_cannot_be_written_is_at_most_a_line(redirection: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    line = f"{' '.join(command('--dry-run'))} {redirection}"
    done = subprocess.run(line, shell=True, stderr=subprocess.PIPE, text=True)
    assert done.returncode in (0, 1)
    assert len(done.stderr.splitlines()) == done.returncode


def test_a_console_without_greek_letters_is_enough() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command("--dry-run"), capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_an_unknown_option_is_one_line(capsys) -> None:
    assert main(["--conifg", "x"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_signal_whose_exception_is_lost_stops_the_run_all_the_same() -> None:
    """As in libraries that catch every exception."""
    with interruptible():
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stop):
            check_interrupted()
    check_interrupted()  # the next run does not remember it


def test_a_signal_in_a_callback_is_raised_again() -> None:
    """Python ignores exceptions there, and prints them with their traceback."""

    class Thing:
        pass

    with interruptible():
        thing = Thing()
        reference = weakref.ref(thing, lambda dead: signal.raise_signal(signal.SIGTERM))
        del thing
        with pytest.raises(Stop):
            time.sleep(10)
        assert reference() is None


def test_ignored_signals_stay_ignored() -> None:
    """Those of nohup: a run goes on after its terminal is closed."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            signal.raise_signal(signal.SIGHUP)
            check_interrupted()
    finally:
        signal.signal(signal.SIGHUP, before)


# --- other damage ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["iterations/001/used.json", "metrics.jsonl"])
def test_another_digit_in_a_table_is_noticed(tmp_path: Path, three: Path, name: str) -> None:
    path = tmp_path / "run"
    shutil.copytree(three, path)
    shutil.rmtree(path / "final")
    shutil.rmtree(path / "iterations" / "002" / "adapter")
    file = path / name
    file.write_text(re.sub(r"\d(?=[,}])", lambda d: str((int(d[0]) + 1) % 10), file.read_text()))
    with pytest.raises((InputError, Interrupted), match=rf"{file}(:1)?: is damaged"):
        run(path, "iterations=3")


@pytest.mark.parametrize("name", ["run.log", "metrics.jsonl", "iterations/001/used.json"])
def test_a_pipe_in_a_run_is_named_and_not_waited_for(
    tmp_path: Path, three: Path, name: str
) -> None:
    path = tmp_path / "run"
    shutil.copytree(three, path)
    (path / name).unlink()
    os.mkfifo(path / name)
    with pytest.raises(InputError, match=rf"neither a file .* delete {path / name}"):
        run(path, "iterations=3")


def test_a_link_in_the_place_of_final_is_removed(tmp_path: Path, three: Path) -> None:
    path, outside = tmp_path / "run", tmp_path / "outside"
    shutil.copytree(three, path)
    outside.mkdir()
    (outside / "keep").write_text("years of work")
    shutil.rmtree(path / "final")
    (path / "final").symlink_to(outside)
    run(path, "iterations=3")
    assert adapter(path) == adapter(three)
    assert (outside / "keep").exists()
