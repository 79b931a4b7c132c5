"""No key and no flag is dead, and what the pages say of them is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from classification.arguments import command_line, parse
from classification.checks import ignored_settings
from classification.config import as_plain, load_config, value_of
from classification.defaults import DEPRECATED, defaults, known_keys
from tests.classification.key_reads import is_read, keys_read
from vmamba.errors import UserError
from vmamba.models.from_config import VSSM_ARGUMENTS

ROOT = Path(__file__).resolve().parents[2]
# These name keys without using their values.
TABLES = ("defaults.py", "checks.py", "arguments.py")
TRAINER_PAGE = (ROOT / "docs" / "trainer.md").read_text()


@pytest.fixture(scope="module")
def read() -> set[tuple[str, ...]]:
    files = [*(ROOT / "classification").glob("*.py"), *(ROOT / "vmamba").rglob("*.py")]
    return keys_read(file for file in files if file.name not in TABLES)


def dead_keys(keys: list[str], read: set[tuple[str, ...]]) -> list[str]:
    vssm = {f"MODEL.VSSM.{key}" for key in VSSM_ARGUMENTS}
    return [key for key in keys if key not in DEPRECATED and key not in vssm and not is_read(key, read, keys)]


def test_every_key_is_read_somewhere(read):
    assert dead_keys(known_keys(), read) == []


def test_a_dead_key_would_be_found(read):
    dead = ["TRAIN.NO_SUCH_KEY", "TRAIN.LOSS.EPOCHS", "NO.EPOCHS"]
    assert dead_keys([*known_keys(), *dead], read) == dead


def flags() -> dict[str, str]:
    """{flag: the key it sets} of every flag that sets one."""
    return {flag: a.dest for a in command_line()._actions for flag in a.option_strings if a.dest.isupper()}


def test_every_flag_sets_a_key_that_exists():
    config = defaults()
    for key in flags().values():
        value_of(config, key)
    assert {"--help", "--cfg", "--opts", "--finetune", "--print-config"} <= set(command_line()._option_string_actions)


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        ("--lr 0.1", "TRAIN.BASE_LR", 0.1), ("--clip-grad 0", "TRAIN.CLIP_GRAD", 0.0),
        ("--freeze patch_embed layers.0", "TRAIN.FREEZE", ["patch_embed", "layers.0"]),
        ("--compile", "TRAIN.COMPILE", "inductor"), ("--compile eager", "TRAIN.COMPILE", "eager"),
        ("--linear-probe", "TRAIN.LINEAR_PROBE", True), ("--parallel fsdp2", "TRAIN.PARALLEL", "fsdp2"),
        ("--finetune x.pth", "MODEL.PRETRAINED", "x.pth"), ("--finetune x.pth", "MODEL.ALLOW_HEAD_MISMATCH", True),
        ("--traincost", "TRAINCOST_MODE", True), ("--amp-opt-level O0", "AMP_ENABLE", False),
        ("--amp-opt-level O1", "AMP_ENABLE", True), ("--sched plateau", "TRAIN.LR_SCHEDULER.NAME", "plateau"),
        ("--loss bce --opts TRAIN.LOSS.BCE_THRESHOLD 0.2", "TRAIN.LOSS.BCE_THRESHOLD", 0.2),
        ("--opts TRAIN.OPTIMIZER.ARGS.nesterov False", "TRAIN.OPTIMIZER.ARGS", {"nesterov": False}),
    ],
)  # fmt: skip
def test_flags_of_ours(words, key, value):
    found = value_of(parse(words.split())[0], key)
    assert found == value and type(found) is (type(value) if not isinstance(value, dict) else type(found))


@pytest.mark.parametrize("flag", ["--amp-opt-level O1", "--enable_amp", "--fused_layernorm", "--fused-window-process"])
def test_deprecated_flags_are_accepted_with_one_warning(flag):
    [line] = ignored_settings(*parse(flag.split()))
    assert " is deprecated: " in line


def test_the_launchers_local_rank_is_accepted():
    assert ignored_settings(*parse(["--local_rank=3"])) == ["LOCAL_RANK is deprecated: torchrun's environment tells it"]


def test_every_deprecated_key_exists_and_is_warned_of():
    for key in DEPRECATED:
        default = value_of(defaults(), key)
        other = (not default) if isinstance(default, bool) else default + ("x" if isinstance(default, str) else 1)
        config, stated = load_config(opts=[key, str(other)])
        assert [line.split()[0] for line in ignored_settings(config, stated)] == [key]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--layer-decay 0", "TRAIN.LAYER_DECAY must be above 0, not 0"),
        ("--distillation-tau 0", "DISTILL.TAU must be above 0"),
        ("--distillation-alpha 2", "DISTILL.ALPHA must lie between 0 and 1"),
        ("--clip-grad -1", "TRAIN.CLIP_GRAD must be at least 0, or None for no limit, not -1"),
        ("--clip-mode norms", "invalid choice: 'norms'"),
        ("--opts TRAIN.CLIP_MODE norms", "TRAIN.CLIP_MODE 'norms' is unknown.*Did you mean 'norm'"),
        ("--cooldown-epochs 299", "COOLDOWN_EPOCHS 299 and TRAIN.WARMUP_EPOCHS 20 are more than TRAIN.EPOCHS 300"),
        ("--dryrun", "unknown flag '--dryrun'. Did you mean '--dry-run'"),
        ("--opts TRAIN.LOSS bce", r"TRAIN.LOSS holds further keys \(NAME"),
    ],
)
def test_bad_values_are_one_line(words, message):
    with pytest.raises(UserError, match=message) as error:
        parse(words.split())
    assert "\n" not in str(error.value)


def test_settings_of_what_is_off_are_named():
    words = "TRAIN.LOSS.BCE_SUM True DISTILL.TAU 2 TRAIN.LR_SCHEDULER.PATIENCE_EPOCHS 3"
    found = ignored_settings(*parse(["--clip-grad", "0", "--clip-mode", "agc", "--opts", *words.split()]))
    assert {line.split()[0] for line in found} == {*words.split()[::2], "TRAIN.CLIP_MODE"}


def test_print_config_is_a_file_that_cfg_reads(capsys, tmp_path):
    with pytest.raises(SystemExit) as done:
        parse(["--print-config", "--lr", "0.5", "--freeze", "patch_embed"])
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    config, _ = load_config(tmp_path / "printed.yaml")
    assert done.value.code == 0 and config.TRAIN.BASE_LR == 0.5
    wanted = as_plain(defaults())
    wanted["TRAIN"] |= {"BASE_LR": 0.5, "FREEZE": ["patch_embed"]}
    assert yaml.safe_load((tmp_path / "printed.yaml").read_text()) == wanted == as_plain(config)


def test_print_config_speaks_once_among_processes(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        parse(["--print-config"])
    assert capsys.readouterr().out == ""


# docs/trainer.md


def test_the_page_names_flags_and_keys_that_exist():
    known = set(command_line()._option_string_actions)
    named = set(re.findall(r"`(--[a-z][\w-]*)", TRAINER_PAGE.split("## What is left out")[0]))
    assert len(named) > 50 and named <= known, sorted(named - known)
    keys = set(re.findall(r"`((?:[A-Z][A-Z_]+\.)+[A-Z_]+)", TRAINER_PAGE))
    nodes = {key.rpartition(".")[0] for key in known_keys()}
    assert keys <= set(known_keys()) | nodes, sorted(keys - set(known_keys()) - nodes)


def test_the_page_names_tests_that_exist():
    rows = [row for row in TRAINER_PAGE.splitlines() if row.startswith("|") and "test_" in row]
    named = [(file, test) for row in rows for file, test in re.findall(r"`(test_\w+)\.(test_\w+)`", row)]
    assert len(named) > 40
    for file, test in named:
        path = ROOT / "tests" / "classification" / f"{file}.py"
        assert f"def {test}(" in path.read_text(), f"{file}.{test}"
