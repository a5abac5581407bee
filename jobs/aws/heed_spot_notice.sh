#!/usr/bin/env bash
# On a spot instance: once EC2 announces that it takes the instance back (two minutes ahead), drain this node of the Ray cluster, so that
# jobs leave it in time. Started by cluster.yaml on every worker; where there is never a notice it only waits.
set -uo pipefail
METADATA=${METADATA:-http://169.254.169.254/latest}
POLL_S=${POLL_S:-5}
WARNING_S=110  # EC2 gives 120 seconds from the notice on

notice() { # whether there is one; 404 until then
  local token
  token=$(curl -sf -m 2 -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' "$METADATA/api/token") || return 1
  curl -sf -m 2 -H "X-aws-ec2-metadata-token: $token" "$METADATA/meta-data/spot/instance-action"
}

until found=$(notice); do sleep "$POLL_S"; done
echo "EC2 takes this instance back: $found"
until ray drain-node --address="${RAY_HEAD_IP:?}:6379" --reason=DRAIN_NODE_REASON_PREEMPTION \
  --reason-message="EC2 takes the spot instance back" --deadline-remaining-seconds="$WARNING_S"; do sleep "$POLL_S"; done
