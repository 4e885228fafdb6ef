#!/bin/sh
# Gets a certificate for {domain}; run it once, as root, while the door runs:
#   apt-get install certbot && sh renew.sh
# From then on Debian's certbot.timer looks twice a day (systemctl list-timers certbot.timer) and
# renews in time. A certificate authority asks http://{domain}/.well-known/acme-challenge/... to see
# that the name is yours: the name's address is this machine, and port 80 is open.
#
# certbot keeps the options, so each renewal ends with the same deploy hook. It copies the new
# certificate to where the door's user may read it (certbot's folder is root's alone), and reloads
# nginx: streams that are running keep the old one and are not cut.
set -eu
certbot certonly --webroot --webroot-path {folder}/acme --domain {domain} \
    --non-interactive --agree-tos --register-unsafely-without-email --keep-until-expiring \
    --deploy-hook 'cd "$RENEWED_LINEAGE" && install -o {user} -m 600 -t {folder}/tls fullchain.pem privkey.pem && systemctl reload door'
