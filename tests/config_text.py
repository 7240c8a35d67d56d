"""Every run writes the text of its config with every checkpoint; laying it out each time took half of the suite.

To be imported before mmengine, which takes the function that is replaced here.
"""

from yapf.yapflib import yapf_api

lay_out, texts = yapf_api.FormatCode, {}


def remembered(text, **options):
    """What yapf makes of a text, made once."""
    key = text, repr(options)
    return texts[key] if key in texts else texts.setdefault(key, lay_out(text, **options))


yapf_api.FormatCode = remembered
