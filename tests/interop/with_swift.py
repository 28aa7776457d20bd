"""Run by ms-swift's interpreter: what its templates make of conversations, with this package's plugin.

`python with_swift.py PACKAGE PLUGIN CONVERSATIONS` prints the ids and labels of each conversation in each format.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from swift.model import get_processor
from swift.template import get_template
from swift.utils import import_external_file

FORMATS = ("polylm", "polylm-assistant", "polylm-multialpaca", "polylm-ecomm", "polylm-base")

package, plugin, conversations = sys.argv[1:]
import_external_file(plugin)
found = {}
for name in FORMATS:
    template = get_template(get_processor(package), template_type=name)
    template.set_mode("train")
    rows = [template.encode({"messages": messages}) for messages in json.loads(Path(conversations).read_text())]
    found[name] = [{"ids": row["input_ids"], "labels": row["labels"]} for row in rows]
print(json.dumps(found))
