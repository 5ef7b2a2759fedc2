"""Load what `publish.py` has published. This needs only torch, transformers, peft and sentence-transformers.

python examples/load.py YOU/describer
"""

import sys

from transformers import AutoModelForSeq2SeqLM, AutoProcessor

repo_id = sys.argv[1]
processor = AutoProcessor.from_pretrained(repo_id, trust_remote_code=True)
model = AutoModelForSeq2SeqLM.from_pretrained(repo_id, trust_remote_code=True)
inputs = processor(["app_config", "send_mail"])  # the processor knows the prompt and the encoder
print(processor.batch_decode(model.generate(**inputs, max_new_tokens=20), skip_special_tokens=True))
