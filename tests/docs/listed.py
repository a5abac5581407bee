"""Commands of the documents that the tests do not run, and why; each pattern is met by some command."""

from __future__ import annotations

LISTED = {
    r"export [A-Z_]+=\S+( [A-Z_]+=\S+)*": "sets variables; nothing to parse",
    r"python train\.py .*": "run by tests/integrations/test_worked_example.py",
    r"python use\.py .*": "run by tests/integrations/test_worked_example.py",
    r"vllm serve .*": "a server of vLLM's own with a model from the hub; tests/export/test_in_vllm.py loads such adapters into vLLM",
    r"next-ray run rollout\.promts_per_step=3": "an error on purpose",
    r"next-ray run bolder\.yaml .*": "its job file is made by the command before",
    r"python -m next_ray\.inspect PATH\.\.\. \[.*": "a synopsis; test_a_synopsis_names_options_that_exist reads it",
}
"""Regular expression of the whole command to the reason."""

ELSEWHERE = {
    r"kubectl .*": "needs a Kubernetes cluster; tests/clusters validates the files",
    r"docker .*": "needs Docker",
    r"(ssh|aws|gcloud|helm|kind|sudo|apt-get) .*": "needs a machine or an account of somebody's",
    r"curl .*": "asks a server that the page starts; that server's own tests ask it",
    r"(prometheus|promtool|grafana|grafana-server|mlflow|tensorboard|wandb) .*": "another program, which its page's own tests start",
}
"""The same for whole programs; none of them need be in the documents."""
