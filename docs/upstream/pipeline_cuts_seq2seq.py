"""transformers: `pipeline("text-generation")` accepts a T5, and cuts the length of the prompt off its answer."""

import transformers
from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer, pipeline

pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in "abcdefghijkl")]
tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0)
sizes = {"vocab_size": 16, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 4}
model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).eval()
options = {"max_new_tokens": 9, "min_new_tokens": 9, "do_sample": False, "suppress_tokens": [0, 1, 2, 3]}
ids = model.generate(**tokenizer("abc", return_tensors="pt"), **options)
expected = tokenizer.decode(ids[0], skip_special_tokens=True)
writer = pipeline("text-generation", model, tokenizer=tokenizer)
text = writer("abc", return_full_text=False, **options)[0]["generated_text"]
print(f"transformers {transformers.__version__}: {text!r}, expected {expected!r}")
