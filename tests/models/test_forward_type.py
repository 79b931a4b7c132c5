"""The published forward_type strings: suffixes in any order, aliases, refusals, and the table in docs/models.md."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import pytest

from vmamba.errors import UserError
from vmamba.models.forward_type import SUFFIXES, VERSIONS, ForwardType, parse_forward_type

CROSS, WIDE = ForwardType(), ForwardType(fp32_scan=True)
DOCS = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.mark.parametrize(
    "text, expected",
    [
        ("v05_noz", ForwardType(gate=False)),
        ("v05", CROSS),
        ("v04", CROSS),
        ("v3", CROSS),
        ("v4", CROSS),
        ("v0", WIDE),
        ("v0seq", WIDE),
        ("v01", WIDE),
        ("v02", WIDE),
        ("v03", WIDE),
        ("v1", WIDE),
        ("v2", WIDE),
        ("v03_no32", CROSS),
        ("v2_noz", replace(WIDE, gate=False)),
        ("v051d_noz", ForwardType(scan_order="unidi", gate=False)),
        ("v31d", ForwardType(scan_order="unidi")),
        ("v052d", ForwardType(scan_order="bidi")),
        ("v32d", ForwardType(scan_order="bidi")),
        ("v052dc", ForwardType(scan_order="cascade2d")),
        ("v32dc", ForwardType(scan_order="cascade2d")),
        ("v052d3", ForwardType(scan_order="rot90")),
        ("v05_nozact", ForwardType(gate_act=False)),
        ("v05_onnone_noz_oact", ForwardType(gate=False, out_norm="none", out_act=True)),
        ("V05_NOZ", ForwardType(gate=False)),
        ("m0", ForwardType(ssd=True)),
        ("m0_oact_noz", ForwardType(ssd=True, gate=False, out_act=True)),
    ],
)
def test_strings_mean_these_options(text: str, expected: ForwardType) -> None:
    assert parse_forward_type(text) == expected


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("norm", ["onnone", "ondwconv3", "oncnorm", "onsoftmax", "onsigmoid"])
def test_suffixes_in_any_order(version: str, norm: str) -> None:
    for suffixes in (("noz", "oact", "no32", norm), ("nozact", "oact", norm)):
        found = {parse_forward_type("_".join([version, *order])) for order in itertools.permutations(suffixes)}
        assert len(found) == 1
        options = found.pop()
        assert options.out_act and options.out_norm == norm[2:]
        assert (options.gate, options.gate_act) == (suffixes[0] != "noz", suffixes[0] != "nozact")
        assert options.scan_order == VERSIONS[version].scan_order


@pytest.mark.parametrize(
    "text, words",
    [
        ("v06_noz", ["'v06_noz'", "Did you mean", "v052dc", "_oncnorm"]),
        ("v05_nozz", ["'v05_nozz'", "Did you mean 'v05_noz'?"]),
        ("v3noz", ["Did you mean 'v3_noz'?"]),
        ("v05_noz_", ["known: v0,"]),
        ("", ["known: v0,"]),
        ("v05_noz_nozact", ["_noz", "_nozact", "keep one"]),
        ("v05_onnone_oncnorm", ["out_norm twice"]),
        ("v05_noz_noz", ["gate twice"]),
        ("xv1a", ["not supported", "experiment", "v05_noz"]),
        ("xv3a_ca_mul", ["not supported"]),
        ("m0_nozz", ["Did you mean 'm0_noz'?"]),
        (5, ["ForwardType, got int"]),
    ],
)
def test_refusals_are_one_line_with_a_way_out(text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        parse_forward_type(text)
    message = str(error.value)
    assert "\n" not in message and message.startswith("forward_type:")
    assert all(word in message for word in words), message


def test_an_instance_passes_and_is_checked() -> None:
    options = ForwardType(scan_order="anything", out_norm="cnorm")
    assert parse_forward_type(options) is options
    with pytest.raises(UserError, match="out_norm: 'cnrm' .*Did you mean 'cnorm'"):
        ForwardType(out_norm="cnrm")
    with pytest.raises(UserError, match="scan_order: 'cascade2d' .* no state-space dual form"):
        ForwardType(scan_order="cascade2d", ssd=True)


def test_every_string_in_the_docs_is_accepted_and_none_is_missing() -> None:
    text = DOCS.read_text(encoding="utf-8")
    table = text.split("## forward_type")[1].split("\n## ")[0]
    spelled = set(re.findall(r"`(v\d\w*|m0\w*)`", table))
    for name in spelled:
        parse_forward_type(name)
    assert set(VERSIONS) <= spelled, set(VERSIONS) - spelled
    assert set(re.findall(r"`_(\w+)`", table)) == set(SUFFIXES)
    for name in re.findall(r"`(v\d\w*)`", text):
        parse_forward_type(name) if name not in ("v1", "v2", "v3") else None
