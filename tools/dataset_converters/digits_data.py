"""Writes scikit-learn's handwritten digits (real ones, 1797 images of 8 x 8 pixels) as an image folder.

The layout is that of mmpretrain's ``CustomDataset``: DEST/train/DIGIT/NUMBER.png and DEST/val/DIGIT/NUMBER.png,
NUMBER being the image's place in the original set. A quarter of each digit's images is for validation.

Example::

    python tools/dataset_converters/digits_data.py data/digits
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from once import write_once
from PIL import Image

from mmprune_gates import cli

VERSION = 1  # raise when the files change
SEED = 0
VAL_SHARE = 0.25
LEVELS = 16  # the brightest grey level of the original


def split_digits(labels: np.ndarray, val_share: float = VAL_SHARE, seed: int = SEED) -> np.ndarray:
    """(n,) booleans: which images are for validation, the same share (rounded) of every class."""
    rng = np.random.default_rng(seed)
    is_val = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        is_val[members[: round(val_share * len(members))]] = True
    return is_val


def _write_all(root: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Writes the whole data set into an empty folder."""
    grey = np.round(images * (255 / LEVELS)).astype(np.uint8)
    for number, (image, label, is_val) in enumerate(zip(grey, labels, split_digits(labels), strict=True)):
        folder = root / ('val' if is_val else 'train') / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f'{number:04d}.png')


def write_digits(root: str | Path) -> Path:
    """Writes ``root``, or reuses it when it already holds the data set.

    Returns:
        The folder ``root``.

    Raises:
        FileExistsError: The folder exists and holds something else.
        ImportError: scikit-learn is not installed.
    """

    def write(folder: Path) -> None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        _write_all(folder, digits.images, digits.target)

    params = dict(generator='digits_data.py', version=VERSION, seed=SEED, val_share=VAL_SHARE)
    return write_once(Path(root), params, write)


@cli.reports_errors
def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = cli.plain_parser(__doc__)
    parser.add_argument('out', help='folder of the data set')
    args = parser.parse_args(argv)
    try:
        print(write_digits(args.out))
    except ImportError as error:
        raise ValueError(f"{error}: the digits come with scikit-learn (pip install 'mmprune_gates[demo]')") from error
    return 0


if __name__ == '__main__':
    sys.exit(main())
