set -eu
until gpulab-agent status | python3 -c 'import json,sys; s=[p["state"] for p in json.load(sys.stdin)["phases"]]; sys.exit(2 if "failed" in s else 0 if set(s) == {"done"} else 1)'; do
  [ $? -eq 2 ] && exit 1
  sleep 5
done
