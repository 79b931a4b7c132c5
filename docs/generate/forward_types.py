"""The tables of the `forward_type` strings, from the parser and from mixers built with each option."""

from __future__ import annotations

import torch

from docs.generate.markdown import code, table
from vmamba.models import SS2D, ForwardType, SS2DMamba2, parse_forward_type
from vmamba.models.forward_type import SUFFIXES, VERSIONS
from vmamba_kernels import scan_order

# What other code calls these designs, and what is known of each.
NOTES = {
    "v0": "the first release",
    "v0seq": "the first release, its groups scanned one after another there",
    "v01": "a step of the published speed ablation",
    "v02": "a step of the published speed ablation",
    "v03": "a step of the published speed ablation",
    "v04": "a step of the published speed ablation",
    "v05": "the present models, as `v05_noz`",
    "v051d": "ablation: one direction",
    "v052d": "ablation: two directions",
    "v052dc": "ablation: rows, then columns",
    "v052d3": "ablation: four quarter turns",
    "v1": "early name of `v03`",
    "v2": "early name of `v05`, widened to float32",
    "v3": "early name of `v04`",
    "v4": "early name of `v05`",
    "v31d": "early name of `v051d`",
    "v32d": "early name of `v052d`",
    "v32dc": "early name of `v052dc`",
    "m0": "the mamba2 models, as `m0_noz`",
}
OPTIONS = {
    "gate": "no gate: half the input projection",
    "gate_act": "a gate without activation",
    "out_act": "GELU after the output norm",
    "fp32_scan": "the scan's inputs stay in their type",
}
OUT_NORMS = {
    "none": "no output norm",
    "dwconv3": "a depthwise 3x3 convolution as output norm",
    "cnorm": "LayerNorm, then a depthwise 3x3 convolution",
    "softmax": "softmax over the positions as output norm",
    "sigmoid": "sigmoid as output norm",
}


def versions() -> str:
    """Return the table of the versions: scan order, its sequences, the type of the scan, and what each was."""
    rows = []
    for name, options in VERSIONS.items():
        sequences = scan_order(options.scan_order, 1, 1).shape[0]
        scan = "state-space dual" if options.ssd else "selective"
        inputs = "widened to float32" if options.fp32_scan else "as they are"
        rows.append([code(name), code(options.scan_order), sequences, scan, inputs, NOTES[name]])
    return table(["version", "scan order", "sequences", "scan", "its inputs", "what it is"], rows)


def suffixes() -> str:
    """Return the table of the suffixes: the option each sets, and what that does to the keys of the weights."""
    rows = []
    for name, changes in SUFFIXES.items():
        base = "v03" if name == "no32" else "v05"
        ((option, value),) = changes.items()
        meaning = OUT_NORMS[str(value)] if option == "out_norm" else OPTIONS[option]
        rows.append([code(f"_{name}"), meaning, code(f"{option}={value!r}"), _difference(base, f"{base}_{name}")])
    return table(["suffix", "effect", "as an option", "keys of the weights, beside none of it"], rows)


def parsed() -> str:
    """Return the table of strings of published configurations beside the options they are read as."""
    strings = ("v0", "v05_noz", "v05", "v2_noz", "v3_noz", "v052dc_noz", "v05_noz_oact", "v05_oncnorm_noz", "m0_noz")
    return table(["string", "options that are not the default"], ([code(s), code(_options(s))] for s in strings))


def _options(text: str) -> str:
    found, plain = parse_forward_type(text), ForwardType()
    fields = {name: getattr(found, name) for name in ForwardType.__dataclass_fields__}
    changed = [f"{name}={value!r}" for name, value in fields.items() if value != getattr(plain, name)]
    return f"ForwardType({', '.join(changed)})"


def _keys(forward_type: str) -> dict[str, tuple[int, ...]]:
    mixer = SS2DMamba2 if parse_forward_type(forward_type).ssd else SS2D
    with torch.device("meta"):
        built = mixer(d_model=96, d_state=1, ssm_ratio=2.0, forward_type=forward_type)
    return {key: tuple(value.shape) for key, value in built.state_dict().items()}


def _difference(base: str, text: str) -> str:
    """The keys that two forward types do not share, at width 96 and ratio 2."""
    old, new = _keys(base), _keys(text)
    gone = [f"no {code(key)}" for key in old if key not in new]
    changed = [
        f"{code(key)} {list(new[key])}, not {list(old[key])}" for key in old if new.get(key, old[key]) != old[key]
    ]
    added = [f"{code(key)} {list(new[key])}" for key in new if key not in old]
    return ", ".join([*changed, *gone, *added]) or "the same"


if __name__ == "__main__":
    print(versions(), suffixes(), parsed(), sep="\n")
