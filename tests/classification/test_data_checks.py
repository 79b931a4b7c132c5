"""Settings of data and augmentation that cannot be, and those that have no effect."""

from __future__ import annotations

import pytest

from classification.arguments import parse
from classification.checks import ignored_settings
from vmamba.errors import UserError

FOUR = ["MODEL.VSSM.IN_CHANS", "4", "DATA.MEAN", "[0.5,0.5,0.5,0.5]", "DATA.STD", "[0.5,0.5,0.5,0.5]"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--zip", "--dataset", "tar"], "DATA.ZIP_MODE reads DATA.DATASET imagenet, not tar"),
        (["--opts", "AUG.CROP_MODE", "scr"], "AUG.CROP_MODE 'scr' is unknown.*Did you mean 'src'"),
        (["--opts", "AUG.VFLIP", "2"], "AUG.VFLIP must lie between 0 and 1, not 2"),
        (["--opts", "AUG.COLOR_JITTER", "[0.1, 0.2]"], "AUG.COLOR_JITTER is one number"),
        (["--opts", "AUG.COLOR_JITTER", "-1"], "AUG.COLOR_JITTER is one number of at least 0"),
        (["--opts", "AUG.COLOR_JITTER", "[0.1, 0.2, 0.3, 0.9]"], "the hue, its fourth number, is at most 0.5"),
        (["--opts", "TEST.CROP_RATIO", "0"], "TEST.CROP_RATIO must be above 0 and at most 1"),
        (["--max-bad", "-1"], "DATA.MAX_BAD must be at least 0"),
        (["--aug-repeats", "0"], "AUG.REPEATS must be at least 1"),
        (["--aug-repeats", "3", "--zip"], "choose --cache-mode no or full"),
        (["--aug-repeats", "3", "--dataset", "wds/"], "AUG.REPEATS needs images in any order"),
        (["--dataset", "imagnet"], "Did you mean 'imagenet'"),
        (["--train-split", ""], "DATA.TRAIN_SPLIT is empty"),
        (["--opts", *FOUR], "the model has 4; set AUG.AUTO_AUGMENT none"),
        (["--opts", "MODEL.VSSM.IN_CHANS", "2"], "images have 1, 3 or 4 channels here, not 2"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        parse(arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (["--no-aug", "--aa", "none", "--crop-mode", "src"], ["AUG.AUTO_AUGMENT", "AUG.CROP_MODE"]),
        (["--three-augment", "--opts", "AUG.COLOR_JITTER", "0.3"], []),
        (["--aa", "augmix-m5", "--opts", "AUG.COLOR_JITTER", "0.3"], ["AUG.COLOR_JITTER"]),
        (["--crop-mode", "src", "--opts", "AUG.CROP_PADDING", "8", "AUG.SCALE", "(0.5,1.0)"], ["AUG.SCALE"]),
        (["--opts", "AUG.CROP_PADDING", "8", "TEST.CROP", "False", "TEST.CROP_RATIO", "1.0"],
         ["TEST.CROP_RATIO", "AUG.CROP_PADDING"]),
        (["--dataset", "digits", "--train-split", "all", "--download"], ["DATA.DOWNLOAD", "DATA.TRAIN_SPLIT"]),
        (["--dataset", "cifar10", "--download"], []),
        (["--dataset", "hfids/x", "--max-bad", "3", "--opts", "DATA.INPUT_KEY", "img"], ["DATA.MAX_BAD"]),
        (["--zip", "--cache-mode", "no"], []),
    ],
)  # fmt: skip
def test_a_setting_without_effect_is_warned_of(arguments, keys):
    assert [line.split()[0] for line in ignored_settings(*parse(arguments))] == keys
