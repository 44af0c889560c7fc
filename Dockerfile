# unplugd in an image: the Debian package, on Debian. `make image` builds dist/unplugd_*.deb first.
#
#   docker build -t unplugd .
#   docker run --rm --user 0 -v /run/xenstored:/run/xenstored -v /run/unplugd:/run/unplugd unplugd     in a dom0
#
# It runs as the user unplugd where the mounts allow it: with the embedded store, and wherever this user may use
# xenstored's socket and owns the runtime directory. In a dom0 both are root's, so it is --user 0 there.
ARG BASE=debian:bookworm-slim
FROM ${BASE}

COPY dist/unplugd_*.deb /tmp/
# The package needs the program that makes its user: the one without systemd.
RUN apt-get update \
 && apt-get install -y --no-install-recommends systemd-standalone-sysusers /tmp/unplugd_*.deb \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/* /tmp/unplugd_*.deb \
 && useradd --system --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin unplugd \
 && install -d -m 755 -o unplugd -g unplugd /run/unplugd

# No journal here: records and guest lines go to standard error. Metrics are for the network of the containers.
COPY config/container/00-container.toml /etc/unplugd/conf.d/

USER unplugd
VOLUME /run/unplugd
EXPOSE 9877
STOPSIGNAL SIGTERM
# asks /-/ready on the control socket
HEALTHCHECK --interval=10s --timeout=5s --start-period=5s CMD ["unplugctl", "status"]
ENTRYPOINT ["unplugd"]
