"""The Python API: what `import softmaxce` offers, objects in place of names, and a real Jupyter kernel."""

import ast
import inspect
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient
from torch import nn

import softmaxce
from softmaxce import build_run, check_loss, evaluate, fit, load, load_config, train
from softmaxce.config import yamlfile
from softmaxce.data.splits import Dataset, InMemory
from softmaxce.errors import ConfigError, RunError, SoftmaxceError
from softmaxce.session import Reporter

from .helpers import SMALL

ROOT = Path(__file__).parents[1]
SMALL_DICT = yamlfile.parse(SMALL, "small.yaml").data


class Net(nn.Module):
    def __init__(self, width: int = 8, classes: int = 2) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.LazyLinear(width), nn.ReLU(), nn.Linear(width, classes))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)  # type: ignore[no-any-return]


def squared_error(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (logits - nn.functional.one_hot(targets, logits.shape[1])).square().sum(1)


def blobs() -> Dataset:
    """Two classes: dark and bright images."""
    labels = torch.arange(40) % 2
    images = (labels[:, None, None, None] * 150 + torch.arange(16).reshape(1, 1, 4, 4)).to(torch.uint8)
    return Dataset(InMemory(images, labels), InMemory(images, labels), ("dark", "bright"))


# -- imports and configs ----------------------------------------------------------------------------------------------


def test_importing_softmaxce_and_checking_a_config_import_no_torch() -> None:
    code = (
        "import sys, softmaxce\n"
        "softmaxce.load_config('digits', {'epochs': 5})\n"
        "try: softmaxce.load_config('digits', {'epoch': 5})\n"
        "except softmaxce.SoftmaxceError: pass\n"
        "assert 'torch' not in sys.modules\n"
        "assert all(hasattr(softmaxce, name) for name in softmaxce.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_type_checker_sees_the_same_names_in_the_same_modules_and_every_parameter_is_typed() -> None:
    (block,) = [node for node in ast.parse(Path(softmaxce.__file__).read_text()).body if isinstance(node, ast.If)]
    imported = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.level  # of softmaxce, not of typing
        for alias in node.names
    }
    assert imported == softmaxce._MODULES
    assert set(imported) == set(softmaxce.__all__)
    for function in (build_run, check_loss, evaluate, fit, load, load_config, train):
        hints = function.__annotations__
        assert hints.keys() == {*inspect.signature(function).parameters, "return"}
        assert function.__doc__
    assert Path(softmaxce.__file__).with_name("py.typed").is_file()


def test_a_dict_a_file_and_a_config_with_the_same_keys_are_the_same_config(small: Path) -> None:
    changes = {"optimizer.lr": 0.01, "model.hidden": (8, 8)}
    from_file = load_config(small, changes)
    assert from_file.optimizer.arguments["lr"] == 0.01
    assert from_file.to_dict() == load_config(SMALL_DICT, changes).to_dict()
    assert from_file.to_dict() == load_config(load_config(SMALL_DICT), changes).to_dict()


def test_every_mistake_is_named_with_the_override_that_made_it() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("digits", {"optimizer.lr": "fast", "epochz": 5})
    messages = [str(problem) for problem in caught.value.problems]
    assert any(message.startswith("optimizer.lr='fast': ") for message in messages)
    assert any("epochs" in message for message in messages)


# -- training ---------------------------------------------------------------------------------------------------------


def test_train_gives_the_bits_of_the_command(tmp_path: Path, small: Path, softmaxce: Any) -> None:
    assert softmaxce("train", "--config", str(small), "--output", "command", "--quiet").returncode == 0
    outcome = train(small, output=tmp_path / "python", quiet=True)
    runs = [tmp_path / "command", tmp_path / "python"]
    ours, theirs = (load(run).model.state_dict() for run in runs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    record = json.loads((tmp_path / "command" / "run.json").read_text())
    assert outcome.scores is not None
    assert outcome.scores.to_dict() == record["test"]


def test_fit_and_evaluate_give_what_train_gives_and_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(SMALL_DICT, {"data.validation": None})
    run = build_run(config)
    assert [epoch.number for epoch in fit(run)] == [1, 2]
    assert list(tmp_path.iterdir()) == []
    outcome = train(config, output="run", quiet=True)
    assert outcome.scores is not None
    assert evaluate(run).accuracy == outcome.scores.accuracy == evaluate("run").accuracy
    assert evaluate(run).loss == pytest.approx(outcome.scores.loss, rel=1e-6)


def test_auto_starts_a_run_then_finds_it_and_a_finished_one_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = train(SMALL_DICT, resume="auto", quiet=True)
    trained: list[int] = []

    class Epochs(Reporter):
        def epoch(self, epoch: Any) -> None:
            trained.append(epoch.number)

    again = train(SMALL_DICT, resume="auto", reporters=[Epochs()])
    assert (again.folder, trained) == (first.folder, [])
    longer = train(SMALL_DICT, {"epochs": 3}, output=first.folder, resume="auto", reporters=[Epochs()])
    assert (longer.epochs, trained) == (3, [3])
    assert train(resume=first.folder, overrides={"epochs": 4}, reporters=[Epochs()]).epochs == 4


def test_a_requirement_that_is_not_met_is_in_the_outcome(tmp_path: Path) -> None:
    assert not train(SMALL_DICT, output=tmp_path / "run", require=["accuracy>=1.0"], quiet=True).requirements_met


# -- objects in place of names ----------------------------------------------------------------------------------------


def test_a_passed_model_loss_and_data_set_train_as_the_same_three_by_name_do(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from tests.test_api import Net, blobs, squared_error\n"
        "def net(): return Net(5)\ndef two(): return blobs()\n"
        "def loss(logits, targets): return squared_error(logits, targets)\n"
    )
    keys: dict[str, Any] = {"epochs": 2, "optimizer": {"name": "sgd", "lr": 0.01}, "data": {"batch_size": 8}}
    named = keys | {"model": f"{file}:net", "loss": f"{file}:loss", "data": {"batch_size": 8, "name": f"{file}:two"}}
    by_name = build_run(named)
    model = Net(5)
    model(torch.zeros(1, 1, 4, 4))
    with torch.no_grad():
        model.load_state_dict(by_name.model.state_dict())
    by_object = build_run(keys, model=model, loss=squared_error, dataset=blobs())
    assert [(e.train, e.test) for e in fit(by_object)] == [(e.train, e.test) for e in fit(by_name)]
    assert by_object.model is model


def test_a_run_of_objects_is_resumed_and_loaded_with_them_and_refused_in_one_line_without(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], softmaxce: Any
) -> None:
    run = tmp_path / "run"
    objects: dict[str, Any] = {"loss": squared_error, "dataset": blobs()}
    train(SMALL_DICT, output=run, model=Net(), quiet=True, **objects)
    recorded = yamlfile.parse((run / "config.yaml").read_text(), "config.yaml").data
    assert recorded["model"]["name"] == "<tests.test_api.Net>"
    assert recorded["loss"]["name"] == "<tests.test_api.squared_error>"
    assert train(SMALL_DICT, {"epochs": 3}, output=run, resume="auto", model=Net(), quiet=True, **objects).epochs == 3
    outcome = train(resume=run, overrides={"epochs": 4}, model=Net(), quiet=True, **objects)
    assert outcome.epochs == 4
    model = load(run, model=Net(), **objects)
    assert outcome.scores is not None
    assert model.evaluate().accuracy == outcome.scores.accuracy
    logits, _ = model.logits("test")
    predicted = [prediction.class_name for prediction in model.predict(blobs().train.images)]
    assert predicted == [model.classes[i] for i in logits.argmax(1).tolist()]
    for call in (lambda: load(run), lambda: train(resume=run, model=Net())):
        with pytest.raises(ConfigError, match="pass it again") as caught:
            call()
        assert len(caught.value.problems) == 1
    done = softmaxce("eval", str(run))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "<tests.test_api.Net>" in done.stderr


def test_a_loss_that_cannot_take_probabilities_is_refused_in_a_sentence() -> None:
    message = r"cannot take logits \[B, K\] and probabilities \[B, K\] \(as mixup makes them\): one_hot"
    with pytest.raises(ConfigError, match=message):
        build_run(SMALL_DICT, {"mixup_alpha": 0.2}, loss=squared_error)


def test_objects_that_cannot_work_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pass output="):
        train(SMALL_DICT, resume="auto", model=Net())
    with pytest.raises(ConfigError, match=r"must be a torch\.nn\.Module"):
        build_run(SMALL_DICT, model=[])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"must return a softmaxce\.data\.splits\.Dataset"):
        build_run(SMALL_DICT, dataset=torch.utils.data.TensorDataset(torch.zeros(3)))  # type: ignore[arg-type]
    train(SMALL_DICT, output=tmp_path / "run", model=Net(8, 10), quiet=True)
    with pytest.raises(RunError, match="run"):
        load(tmp_path / "run", model=Net(9, 10))


class Brighter:
    """An augmentation."""

    def __init__(self, offset: float) -> None:
        self.offset = offset

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images + self.offset


def test_a_run_of_objects_prints_the_call_that_loads_it_as_the_next_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "it's a run"
    train(SMALL_DICT, {"epochs": 1}, output=run, model=Net(8, 10), loss=squared_error)
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == f"next: softmaxce.load({str(run)!r}, model=..., loss=...).evaluate()"
    names = {"softmaxce": softmaxce, "net": Net(8, 10), "squared_error": squared_error}
    call = line.removeprefix("next: ").replace("model=...", "model=net").replace("loss=...", "loss=squared_error")
    assert 0 <= eval(call, names).accuracy <= 1
    train(SMALL_DICT, {"epochs": 1}, output=tmp_path / "named")
    assert capsys.readouterr().out.splitlines()[-1] == f"next: softmaxce eval {tmp_path / 'named'}"


def test_a_run_with_an_augmentation_as_an_object_loads_without_it_and_resumes_with_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = {**SMALL_DICT, "data": {**SMALL_DICT["data"], "augment": [Brighter(0.1), "random_horizontal_flip"]}}
    outcome = train(config, output=run, quiet=True)
    recorded = yamlfile.parse((run / "config.yaml").read_text(), "config.yaml").data
    assert recorded["data"]["augment"][0]["name"] == "<tests.test_api.Brighter>"
    assert outcome.scores is not None
    assert load(run).evaluate().accuracy == outcome.scores.accuracy
    assert train(config, {"epochs": 3}, output=run, resume="auto", quiet=True).epochs == 3
    with pytest.raises(ConfigError, match="pass it again"):
        train(resume=run, overrides={"epochs": 4})
    with pytest.raises(ConfigError, match=r"has Python objects \(data\.augment\); pass output="):
        train(config, resume="auto")


def test_loading_runs_no_code_that_only_trains_and_asks_for_no_trust_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = (
        "import pathlib, torch\npathlib.Path('trace').touch()\n"
        "class Same:\n    def __call__(self, images): return images\n"
        "class Own(torch.optim.SGD): pass\n"
        "def steady(*, steps): return lambda step: 1.0\n"
    )
    (tmp_path / "trained.py").write_text(own)
    parts = {"optimizer": {"name": "trained.py:Own", "lr": 0.1}, "schedule": "trained.py:steady"}
    train({**SMALL_DICT, **parts}, {"data.augment": ["trained.py:Same"]}, output="run", quiet=True)
    (tmp_path / "trace").unlink()
    assert load("run").evaluate().images == 40
    assert not (tmp_path / "trace").exists()
    with pytest.raises(
        RunError, match=r"trained\.py:Own, trained\.py:steady, trained\.py:Same, .* add trust_code=True"
    ):
        train(resume="run", overrides={"epochs": 3})


def test_loading_with_an_object_of_another_class_than_recorded_warns_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train(SMALL_DICT, {"epochs": 1}, output=run, model=Net(8, 10), loss=squared_error, quiet=True)
    capsys.readouterr()
    load(run, model=Net(8, 10), loss=squared_error)
    assert capsys.readouterr().err == ""
    load(run, model=Net(8, 10), loss=nn.CrossEntropyLoss())
    assert capsys.readouterr().err == (
        f"warning: {run / 'best.safetensors'}: this run was trained with the loss <tests.test_api.squared_error>, but "
        "<torch.nn.modules.loss.CrossEntropyLoss> is passed\n"
    )


def test_errors_of_calls_speak_of_arguments_and_those_of_commands_of_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, softmaxce: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("from tests.test_api import squared_error as loss\n")
    train({**SMALL_DICT, "loss": "own.py:loss"}, output="run", quiet=True)
    train(SMALL_DICT, output="small", quiet=True)
    record = json.loads(Path("small/run.json").read_text())
    kind = record["environment"]["data"]["test"].partition(":")[0]
    record["environment"]["data"]["test"] = f"{kind}:0"
    Path("small/run.json").write_text(json.dumps(record))
    cases: list[tuple[Any, str, list[str], str]] = [
        (lambda: load("run"), "add trust_code=True", ["eval", "run"], "add --trust-code"),
        (lambda: evaluate("small"), "add allow_changed_data=True", ["eval", "small"], "add --allow-changed-data"),
        (
            lambda: train("digits", output="run"),
            'resume the run in it with resume="auto"',
            ["train", "--config", "digits", "--output", "run"],
            "--output run: the folder is not empty",
        ),
        (lambda: load_config("digit"), "config: there is no", ["train", "--config", "digit"], "--config: there is no"),
        (
            lambda: train("digits", require=["acuracy>=1"]),
            "require acuracy>=1: ",
            ["train", "--config", "digits", "--require", "acuracy>=1"],
            "--require acuracy>=1: ",
        ),
    ]
    for call, in_python, command, on_the_command_line in cases:
        with pytest.raises(SoftmaxceError) as caught:
            call()
        assert in_python in str(caught.value)
        assert "--" not in str(caught.value)
        assert on_the_command_line in softmaxce(*command).stderr


# -- a real Jupyter kernel --------------------------------------------------------------------------------------------


def test_the_quickstart_notebook_runs_and_train_draws_its_table(tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "docs" / "notebooks" / "quickstart.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    cells = {cell["id"]: cell for cell in notebook.cells}
    (table,) = [out for out in cells["train"].outputs if out.output_type == "display_data"]
    assert table.data["text/html"].count("<tr>") == 1 + 5
    assert "<progress" not in table.data["text/html"]
    assert "5/5" in table.data["text/plain"]
    assert float(cells["load"].outputs[0].text.split()[0]) > 0.8
    assert (tmp_path / "runs" / "own" / "best.safetensors").is_file()


def test_interrupting_the_kernel_saves_a_run_that_can_be_resumed(tmp_path: Path) -> None:
    code = "import softmaxce\noutcome = softmaxce.train('digits', {'epochs': %d}, output='run', resume='auto')"
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(tmp_path))
    try:
        # by default a kernel discards the requests that reach it just after an error, as the second one below may
        request = client.execute(code % 1000, stop_on_error=False)
        metrics = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (metrics.is_file() and metrics.read_text().count("\n") >= 2):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        manager.interrupt_kernel()
        while (message := client.get_shell_msg(timeout=60))["parent_header"]["msg_id"] != request:
            pass  # the answer to an earlier request, about the kernel itself
        reply = message["content"]
        assert (reply["status"], reply["ename"]) == ("error", "KeyboardInterrupt")
        record = json.loads((tmp_path / "run" / "run.json").read_text())
        done = record["epochs"]
        assert record["status"] == "interrupted"
        assert len(metrics.read_text().splitlines()) == done >= 2
        reply = client.execute(f"{code % (done + 2)}\nassert outcome.epochs == {done + 2}", reply=True, timeout=120)
        assert reply["content"]["status"] == "ok", reply["content"]
        epochs = [json.loads(line)["epoch"] for line in metrics.read_text().splitlines()]
        assert epochs == list(range(1, done + 3))
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
