# SPDX-License-Identifier: Apache-2.0
"""Options as users of the originals' programs know them, put into our words."""

from __future__ import annotations

#: The original's → ours; what every command that has it takes by both names is not here.
RENAMED = {
    "--batchSize": "--batch-size",
    "--celeba-image-dir": "--data",
    "--checkpoints-dir": "--out",
    "--continue-train": "--resume",
    "--g-lr": "--lr",
    "--imageSize": "--image-size",
    "--manualSeed": "--seed",
    "--num-threads": "--num-workers",
    "--outf": "--out",
    "--rafd-image-dir": "--data",
    "--workers": "--num-workers",
}
#: The original's weight → our term's.
WEIGHTS = {
    "--lambda-A": "rec",
    "--lambda-L1": "rec",
    "--lambda-cls": "cla",
    "--lambda-gp": "gp",
    "--lambda-rec": "rec",
}
#: Networks by the names that junyanz gives them; anything else is a file, as in DCGAN's programs.
NETWORKS = {
    "--netG": {
        "unet_256": ["--num-downs", "8"],
        "unet_128": ["--num-downs", "7"],
        "resnet_9blocks": ["--num-blocks", "9"],
        "resnet_6blocks": ["--num-blocks", "6"],
    },
    "--netD": {"basic": [], "pixel": ["--n-layers-d", "0"]},
}
_FILES = {"--netG": "--generator", "--netD": "--discriminator"}


def translated(words: list[str]) -> list[str]:
    """The words of a command line, with the originals' options as ours.

    Options may have underscores; ``--selected_attrs A B`` is one option for each.

    Example:
        >>> translated(["--load_size", "286", "--netG", "unet_128", "--lambda_L1=50"])
        ['--load-size', '286', '--num-downs', '7', '--weight', 'rec=50']
    """
    rest = _each_for_itself([word for given in words for word in _apart(given)])
    found: list[str] = []
    while rest:
        word = rest.pop(0)
        if word in WEIGHTS and rest:
            found += ["--weight", f"{WEIGHTS[word]}={rest.pop(0)}"]
        elif word in NETWORKS and rest:
            name = rest.pop(0)
            found += NETWORKS[word].get(name, [_FILES[word], name])
        else:
            found.append(RENAMED.get(word, word))
    return found


def _apart(word: str) -> list[str]:
    """An option with dashes; its value apart from it where it is the originals'."""
    if not word.startswith("--"):
        return [word]
    name, equals, value = word.partition("=")
    name = name.replace("_", "-")
    apart = equals and (name in RENAMED or name in WEIGHTS or name in NETWORKS)
    return [name, value] if apart else [name + equals + value]


def _each_for_itself(words: list[str]) -> list[str]:
    """The originals' --selected_attrs A B is --selected-attrs A --selected-attrs B."""
    option, found = "--selected-attrs", [""]
    several = False
    for word in words:
        if word.startswith("--"):
            several = word == option
        elif several and found[-1] != option:
            found.append(option)
        found.append(word)
    return found[1:]
