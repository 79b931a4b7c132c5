"""Configuration: published defaults, inheritance, overrides, and every fault as one line."""

from __future__ import annotations

import pytest

from classification.arguments import parse
from classification.checks import ignored_settings
from classification.config import as_plain, as_yaml, changed_keys, load_config
from classification.defaults import defaults
from vmamba.errors import UserError, exit_on_user_error

PUBLISHED = {
    "BASE": [""],
    "DATA.BATCH_SIZE": 128,
    "DATA.DATA_PATH": "",
    "DATA.DATASET": "imagenet",
    "DATA.IMG_SIZE": 224,
    "DATA.INTERPOLATION": "bicubic",
    "DATA.ZIP_MODE": False,
    "DATA.CACHE_MODE": "part",
    "DATA.PIN_MEMORY": True,
    "DATA.NUM_WORKERS": 8,
    "DATA.MASK_PATCH_SIZE": 32,
    "DATA.MASK_RATIO": 0.6,
    "MODEL.TYPE": "vssm",
    "MODEL.NAME": "vssm_tiny_224",
    "MODEL.PRETRAINED": "",
    "MODEL.RESUME": "",
    "MODEL.NUM_CLASSES": 1000,
    "MODEL.DROP_RATE": 0.0,
    "MODEL.DROP_PATH_RATE": 0.1,
    "MODEL.LABEL_SMOOTHING": 0.1,
    "MODEL.MMCKPT": False,
    "MODEL.VSSM.PATCH_SIZE": 4,
    "MODEL.VSSM.IN_CHANS": 3,
    "MODEL.VSSM.DEPTHS": [2, 2, 9, 2],
    "MODEL.VSSM.EMBED_DIM": 96,
    "MODEL.VSSM.SSM_D_STATE": 16,
    "MODEL.VSSM.SSM_RATIO": 2.0,
    "MODEL.VSSM.SSM_RANK_RATIO": 2.0,
    "MODEL.VSSM.SSM_DT_RANK": "auto",
    "MODEL.VSSM.SSM_ACT_LAYER": "silu",
    "MODEL.VSSM.SSM_CONV": 3,
    "MODEL.VSSM.SSM_CONV_BIAS": True,
    "MODEL.VSSM.SSM_DROP_RATE": 0.0,
    "MODEL.VSSM.SSM_INIT": "v0",
    "MODEL.VSSM.SSM_FORWARDTYPE": "v2",
    "MODEL.VSSM.MLP_RATIO": 4.0,
    "MODEL.VSSM.MLP_ACT_LAYER": "gelu",
    "MODEL.VSSM.MLP_DROP_RATE": 0.0,
    "MODEL.VSSM.PATCH_NORM": True,
    "MODEL.VSSM.NORM_LAYER": "ln",
    "MODEL.VSSM.DOWNSAMPLE": "v2",
    "MODEL.VSSM.PATCHEMBED": "v2",
    "MODEL.VSSM.POSEMBED": False,
    "MODEL.VSSM.GMLP": False,
    "TRAIN.START_EPOCH": 0,
    "TRAIN.EPOCHS": 300,
    "TRAIN.WARMUP_EPOCHS": 20,
    "TRAIN.WEIGHT_DECAY": 0.05,
    "TRAIN.BASE_LR": 5e-4,
    "TRAIN.WARMUP_LR": 5e-7,
    "TRAIN.MIN_LR": 5e-6,
    "TRAIN.CLIP_GRAD": 5.0,
    "TRAIN.AUTO_RESUME": True,
    "TRAIN.ACCUMULATION_STEPS": 1,
    "TRAIN.USE_CHECKPOINT": False,
    "TRAIN.LR_SCHEDULER.NAME": "cosine",
    "TRAIN.LR_SCHEDULER.DECAY_EPOCHS": 30,
    "TRAIN.LR_SCHEDULER.DECAY_RATE": 0.1,
    "TRAIN.LR_SCHEDULER.WARMUP_PREFIX": True,
    "TRAIN.LR_SCHEDULER.GAMMA": 0.1,
    "TRAIN.LR_SCHEDULER.MULTISTEPS": [],
    "TRAIN.OPTIMIZER.NAME": "adamw",
    "TRAIN.OPTIMIZER.EPS": 1e-8,
    "TRAIN.OPTIMIZER.BETAS": (0.9, 0.999),
    "TRAIN.OPTIMIZER.MOMENTUM": 0.9,
    "TRAIN.LAYER_DECAY": 1.0,
    "TRAIN.MOE.SAVE_MASTER": False,
    "AUG.COLOR_JITTER": 0.4,
    "AUG.AUTO_AUGMENT": "rand-m9-mstd0.5-inc1",
    "AUG.REPROB": 0.25,
    "AUG.REMODE": "pixel",
    "AUG.RECOUNT": 1,
    "AUG.MIXUP": 0.8,
    "AUG.CUTMIX": 1.0,
    "AUG.CUTMIX_MINMAX": None,
    "AUG.MIXUP_PROB": 1.0,
    "AUG.MIXUP_SWITCH_PROB": 0.5,
    "AUG.MIXUP_MODE": "batch",
    "TEST.CROP": True,
    "TEST.SEQUENTIAL": False,
    "TEST.SHUFFLE": False,
    "AMP_ENABLE": True,
    "ENABLE_AMP": False,
    "AMP_OPT_LEVEL": "",
    "OUTPUT": "",
    "TAG": "default",
    "SAVE_FREQ": 1,
    "PRINT_FREQ": 10,
    "SEED": 0,
    "EVAL_MODE": False,
    "THROUGHPUT_MODE": False,
    "TRAINCOST_MODE": False,
    "FUSED_LAYERNORM": False,
}


def value(config, key: str):
    for part in key.split("."):
        config = config[part]
    return config


@pytest.mark.parametrize("key", PUBLISHED)
def test_published_default(key):
    found = value(defaults(), key)
    assert found == PUBLISHED[key] and type(found) is type(PUBLISHED[key])


def test_base_files_opts_and_flags_win_in_this_order(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "root.yaml").write_text("TRAIN: {EPOCHS: 1, BASE_LR: 1e-3}\nSEED: 1\nTAG: root\nSAVE_FREQ: 7\n")
    (tmp_path / "deep" / "middle.yaml").write_text("BASE: ['../root.yaml']\nTRAIN: {EPOCHS: 2}\nSEED: 2\nTAG: middle\n")
    (tmp_path / "top.yaml").write_text("BASE: [deep/middle.yaml, '']\nSEED: 3\nTAG: top\n")
    flags = [
        "--cfg",
        str(tmp_path / "top.yaml"),
        "--opts",
        "TAG",
        "opts",
        "PRINT_FREQ",
        "5",
        "TRAIN.WARMUP_EPOCHS",
        "0",
    ]
    config, stated = parse([*flags, "--tag", "flag"])
    assert (config.TRAIN.BASE_LR, config.TRAIN.EPOCHS, config.SEED, config.TAG) == (1e-3, 2, 3, "flag")
    assert (config.SAVE_FREQ, config.PRINT_FREQ) == (7, 5)
    assert {"TRAIN.EPOCHS", "SEED", "TAG", "PRINT_FREQ"} <= stated and "OUTPUT" not in stated


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("TRAIN.BASE_LR", "1e-3", 1e-3),
        ("TRAIN.BASE_LR", "1", 1.0),
        ("TRAIN.AUTO_RESUME", "false", False),
        ("DATA.IMG_SIZE", "[32, 64]", [32, 64]),
        ("DATA.IMG_SIZE", "64", 64),
        ("TRAIN.OPTIMIZER.BETAS", "[0.9,0.95]", (0.9, 0.95)),
        ("MODEL.VSSM.SSM_DT_RANK", "8", 8),
        ("MODEL.VSSM.SSM_DT_RANK", "auto", "auto"),
        ("AUG.CUTMIX_MINMAX", "[0.2,0.8]", [0.2, 0.8]),
        ("MODEL.VSSM.EMBED_DIM", "(8, 16)", [8, 16]),
        ("TAG", "7", "7"),
        ("TRAIN.CLIP_GRAD", "None", None),
        ("MODEL.TIMM.in_chans", "1", 1),
    ],
)
def test_opts_take_the_type_of_the_key(key, text, expected):
    found = value(load_config(opts=[key, text])[0], key)
    assert found == expected and type(found) is type(expected)


def test_a_later_file_may_change_between_the_types_of_a_key(tmp_path):
    (tmp_path / "a.yaml").write_text("DATA: {IMG_SIZE: [8, 16]}")
    (tmp_path / "b.yaml").write_text("BASE: [a.yaml]\nDATA: {IMG_SIZE: 12}")
    assert load_config(tmp_path / "b.yaml")[0].DATA.IMG_SIZE == 12


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "TRAIN: {EPOCH: 3}"}, r"a.yaml: there is no key TRAIN.EPOCH. Did you mean 'TRAIN.EPOCHS'\?"),
        ({"a": "EPOCHS: 3"}, r"there is no key EPOCHS. Did you mean 'TRAIN.EPOCHS'\?"),
        ({"a": "TRAIN: {EPOCHS: soon}"}, "a.yaml: TRAIN.EPOCHS must be int, not 'soon'"),
        ({"a": "TRAIN: {EPOCHS: true}"}, "TRAIN.EPOCHS must be int, not True"),
        ({"a": "TRAIN: 3"}, "TRAIN holds further keys .*not the value 3"),
        ({"a": "SEED: {A: 1}"}, "SEED must be int"),
        (
            {"a": "BASE: [b.yaml]", "b": "BASE: [a.yaml]"},
            "b.yaml: BASE goes round in a circle: a.yaml -> b.yaml -> a.yaml",
        ),
        ({"a": "BASE: [a.yaml]"}, "BASE goes round in a circle: a.yaml -> a.yaml"),
        (
            {"a": "BASE: [bb.yaml]", "b": ""},
            r"there is no configuration file .*bb.yaml \(named by BASE in .*a.yaml\). Did you mean 'b.yaml'",
        ),
        ({"a": "BASE: [/etc/passwd]"}, "BASE '/etc/passwd' is an absolute path; write it relative"),
        ({"a": "BASE: [~/x.yaml]"}, "absolute path"),
        ({"a": "BASE: [3]"}, "BASE must be a list of file names, not 3"),
        ({"a": "BASE: 3"}, "a.yaml: BASE must be a list of file names, not 3"),
        ({"a": "BASE: 0"}, "BASE must be a list of file names, not 0"),
        ({"a": "BASE: {b.yaml: 1}"}, "BASE must be a list of file names, not {'b.yaml': 1}"),
        (
            {"a": "TAG: !!python/object/apply:os.mkdir [canary]"},
            "a.yaml line 1: could not determine a constructor for the tag",
        ),
        ({"a": "TAG: [1"}, "a.yaml line"),
        ({"a": "- 1"}, "a configuration is a mapping of keys, not list"),
    ],
)
def test_a_faulty_file_is_one_line_with_the_key_path(tmp_path, monkeypatch, files, message):
    monkeypatch.chdir(tmp_path)
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        load_config(tmp_path / "a.yaml")
    assert "\n" not in str(error.value) and not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--opts", "TRAIN.EPOCHS"], "pairs of KEY VALUE; 'TRAIN.EPOCHS' has no value"),
        (["--opts", "TRAIN.EPOCHS", "x"], "--opts: TRAIN.EPOCHS must be int, not 'x'"),
        (["--opts", "TRAIN", "x"], "TRAIN holds further keys"),
        (["--opts", "TRAIN.BASE_LR", "-1"], "TRAIN.BASE_LR must be at least 0"),
        (["--opts", "MODEL.DROP_PATH_RATE", "1.5"], "MODEL.DROP_PATH_RATE must lie between 0 and 1"),
        (["--opts", "TRAIN.LR_SCHEDULER.NAME", "cosin"], "is one of cosine, .*Did you mean 'cosine'"),
        (["--opts", "DATA.DATASET", "digitz"], "Did you mean 'digits'"),
        (["--opts", "DATA.MEAN", "[0.5]"], "DATA.MEAN .* needs one number for each of 3 input channels"),
        (["--opts", "DATA.IMG_SIZE", "[1,2,3]"], r"one number or \[height, width\]"),
        (["--epochs", "3"], "TRAIN.WARMUP_EPOCHS 20 is longer than TRAIN.EPOCHS 3"),
        (["--batchsize", "3"], "unknown flag '--batchsize'. Did you mean '--batch-size'"),
        (["--batch-size", "x"], "--batch-size: invalid int value: 'x'"),
        (["--model_ema", "maybe"], "'maybe' is neither true nor false"),
        (["surplus"], "unknown argument 'surplus'"),
    ],
)
def test_a_faulty_command_line_is_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        parse(arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("DATA.MEAN", "['a']", "takes only numbers that are finite, not 'a'"),
        ("DATA.STD", "[0.0]", "takes only numbers above 0, not 0.0"),
        ("DATA.STD", "[True,1,1]", "takes only numbers above 0, not True"),
        ("TRAIN.OPTIMIZER.BETAS", "(0.9,)", r"must hold 2 numbers, not 1: \[0.9\]"),
        ("TRAIN.OPTIMIZER.BETAS", "(0.9,'x')", "takes only numbers at least 0 and below 1, not 'x'"),
        ("TRAIN.OPTIMIZER.BETAS", "(0.9,1.0)", "takes only numbers at least 0 and below 1, not 1.0"),
        ("AUG.SCALE", "[1]", r"must hold 2 numbers, not 1: \[1\]"),
        ("AUG.SCALE", "[0.9,0.1]", r"must be \[low, high\], not \[0.9, 0.1\]"),
        ("AUG.RATIO", "[0,1]", "takes only numbers above 0, not 0"),
        ("AUG.RATIO", "['x',1]", "takes only numbers above 0, not 'x'"),
        ("AUG.CUTMIX_MINMAX", "['a','b']", "takes only numbers between 0 and 1, not 'a'"),
        ("AUG.CUTMIX_MINMAX", "[0.2]", "must hold 2 numbers, not 1"),
        ("TRAIN.LR_SCHEDULER.MULTISTEPS", "['a']", "takes only whole numbers at least 1, not 'a'"),
        ("TRAIN.LR_SCHEDULER.MULTISTEPS", "[1.5]", "takes only whole numbers at least 1, not 1.5"),
        ("MODEL.VSSM.EMBED_DIM", "[48,'x']", "takes only whole numbers at least 1, not 'x'"),
        ("MODEL.VSSM.EMBED_DIM", "0", "takes only whole numbers at least 1, not 0"),
        ("MODEL.VSSM.DEPTHS", "[2,'x']", "takes only whole numbers at least 1, not 'x'"),
        ("SEED", "-1", "must be at least 0, not -1"),
        ("TRAIN.LR_SCHEDULER.DECAY_EPOCHS", "0", "must be at least 1, not 0"),
        ("MODEL.VSSM.PATCH_SIZE", "0", "must be at least 1, not 0"),
        ("MODEL.VSSM.SSM_D_STATE", "0", "must be at least 1, not 0"),
        ("MODEL.VSSM.SSM_D_STATE", "300", "must be at most 256, not 300"),
        ("AUG.AUTO_AUGMENT", "rnd-m9", r"'rnd-m9' is unknown; it starts with one of rand, .*Did you mean 'rand'\?"),
    ],
)
def test_a_value_out_of_range_is_one_line_with_the_key_and_exit_code_2(capsys, key, text, message):
    with pytest.raises(UserError, match=f"^{key} {message}") as error:
        parse(["--opts", key, text])
    assert exit_on_user_error(parse)(["--opts", key, text]) == 2
    assert capsys.readouterr().err == f"error: {error.value}\n" and "\n" not in str(error.value)


@pytest.mark.parametrize("policy", ["none", "original-mstd0.5", "augmix-m5-w4-d2", "v0r", "3a"])
def test_policies_of_timm_are_accepted(policy):
    assert parse(["--opts", "AUG.AUTO_AUGMENT", policy])[0].AUG.AUTO_AUGMENT == policy


def test_published_flags_set_their_keys():
    config, _ = parse(
        "--data-path /d --batch-size 4 --cache-mode full --pretrained p --resume r --accumulation-steps 2 "
        "--use-checkpoint "
        "--disable_amp --output o --tag t --eval --throughput --fused_layernorm --optim sgd --model_ema False "
        "--model_ema_decay 0.5 --model_ema_force_cpu true --memory_limit_rate 0.5".split()
    )
    found = (
        config.DATA.DATA_PATH,
        config.DATA.BATCH_SIZE,
        config.DATA.CACHE_MODE,
        config.MODEL.PRETRAINED,
        config.MODEL.RESUME,
        config.TRAIN.ACCUMULATION_STEPS,
        config.TRAIN.USE_CHECKPOINT,
        config.AMP_ENABLE,
        config.OUTPUT,
        config.TAG,
        config.EVAL_MODE,
        config.THROUGHPUT_MODE,
        config.FUSED_LAYERNORM,
        config.TRAIN.OPTIMIZER.NAME,
        config.EMA.ENABLE,
        config.EMA.DECAY,
        config.EMA.FORCE_CPU,
        config.MEMORY_LIMIT_RATE,
    )
    assert found == (
        "/d",
        4,
        "full",
        "p",
        "r",
        2,
        True,
        False,
        "o",
        "t",
        True,
        True,
        True,
        "sgd",
        False,
        0.5,
        True,
        0.5,
    )


def test_flags_take_either_spelling():
    assert parse(["--model-ema-decay", "0.5", "--batch_size=3"])[0].DATA.BATCH_SIZE == 3


def test_help_is_grouped(capsys):
    with pytest.raises(SystemExit) as done:
        parse(["-h"])
    text = capsys.readouterr().out
    assert done.value.code == 0
    assert all(f"\n{group}:\n" in text for group in ("configuration", "data", "weights", "training", "output"))


def test_settings_without_effect_are_named_once_and_defaults_never():
    assert ignored_settings(*parse([])) == []
    config, stated = parse(
        ["--cache-mode", "full", "--fused_layernorm", "--opts", "MODEL.DROP_RATE", "0.3", "AUG.COLOR_JITTER", "0.1",
         "TRAIN.LR_SCHEDULER.GAMMA", "0.5", "EMA.ENABLE", "False", "EMA.DECAY", "0.9", "MODEL.TIMM.in_chans", "3"]
    )  # fmt: skip
    keys = [line.split()[0] for line in ignored_settings(config, stated)]
    assert sorted(keys) == [
        "AUG.COLOR_JITTER", "DATA.CACHE_MODE", "EMA.DECAY", "FUSED_LAYERNORM", "MODEL.TIMM.in_chans",
        "TRAIN.LR_SCHEDULER.GAMMA",
    ]  # fmt: skip


def test_vssm_keys_are_ignored_by_timm_models():
    config, stated = parse(["--opts", "MODEL.TYPE", "timm", "MODEL.VSSM.SSM_RATIO", "1.0"])
    assert ignored_settings(config, stated) == [
        "MODEL.VSSM.SSM_RATIO has no effect: MODEL.TYPE is timm; its arguments are under MODEL.TIMM"
    ]


def test_a_written_configuration_reads_back(tmp_path):
    config, _ = load_config(
        opts=["DATA.IMG_SIZE", "[8, 9]", "AUG.CUTMIX_MINMAX", "[0.1, 0.2]", "MODEL.TIMM.in_chans", "1"]
    )
    (tmp_path / "config.yaml").write_text(as_yaml(config))
    again, _ = load_config(tmp_path / "config.yaml")
    assert as_plain(again) == as_plain(config)
    again.TRAIN.BASE_LR = 1.0
    assert changed_keys(as_plain(config), as_plain(again)) == ["TRAIN.BASE_LR 0.0005 -> 1.0"]
