#!/bin/sh
# Installs what a host needs: Python environment, and the bucket mounted at SHARED. Safe to repeat.
. "$(dirname "$0")/lib.sh"
options "" "$@"

# Images come with Python 3.10; uv brings a newer one.
everywhere "set -e
command -v gcsfuse >/dev/null || {
  echo deb https://packages.cloud.google.com/apt gcsfuse-\$(lsb_release -c -s) main | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /etc/apt/trusted.gpg.d/gcsfuse.asc >/dev/null
  sudo apt-get update -qq && sudo apt-get install -y -qq gcsfuse
}
sudo mkdir -p $SHARED && sudo chown \$(id -u) $SHARED
mountpoint -q $SHARED || gcsfuse --implicit-dirs $BUCKET $SHARED
mkdir -p $SHARED/runs $SHARED/checkpoints ~/vlaa/logs
[ -x ~/vlaa/uv/bin/uv ] || {
  python3 -c 'import ensurepip' 2>/dev/null || {
    sudo apt-get update -qq && sudo apt-get install -y -qq python3-venv
  }
  rm -rf ~/vlaa/uv && python3 -m venv ~/vlaa/uv && ~/vlaa/uv/bin/pip install -q uv
}
[ -x ~/vlaa/venv/bin/pip ] || { rm -rf ~/vlaa/venv && ~/vlaa/uv/bin/uv venv -q --seed --python 3.12 ~/vlaa/venv; }"
