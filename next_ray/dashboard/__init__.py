"""What Prometheus and Grafana show of a run: metrics, panels, alerts. Descriptions only; `actors/metrics.py` measures."""
