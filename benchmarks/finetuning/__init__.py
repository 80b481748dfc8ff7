"""Fine-tuning of the embedded base by six methods, and what serving the results costs and gives."""

import logging

# It looks for a kernel that would be downloaded, and warns that there is none.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
