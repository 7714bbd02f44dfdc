#!/bin/sh
# The health check of docker-compose.yml calls it by this path, as it stands in the official image.
exec java -Xmx128m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp "/opt/kafka/libs/*" \
    org.apache.kafka.tools.BrokerApiVersionsCommand "$@"
