"""Publish an adapter on the Hub: export it, verify it, push it.

python examples/six_steps.py
hf auth login
python examples/publish.py YOU/describer
"""

import sys

from t5fusion.hub_export import export, push, verify

repo_id = sys.argv[1]
# "standalone" includes the weights of the base model, because tiny_t5_v2 is not on the Hub. If your base model is on
# the Hub, such as google/flan-t5-small, leave `kind` out. Readers then get its weights from the Hub.
export("runs/six_steps", "bundles/describer", kind="standalone", overwrite=True)
report = verify("bundles/describer", say=print)  # without t5fusion; `push` does this too
if not report.ok:
    sys.exit("The bundle does not give the outputs of the trained model.")
pushed = push("bundles/describer", repo_id)
print(f"Now at {pushed.url}")
