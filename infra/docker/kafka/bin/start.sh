#!/bin/bash
# Starts one broker. Settings come as the official image takes them: KAFKA_LOG_DIRS=/x becomes log.dirs=/x.
set -euo pipefail
config=/tmp/server.properties
while IFS='=' read -r -d '' name value; do
    case $name in
    KAFKA_HEAP_OPTS) ;;
    KAFKA_*)
        name=${name#KAFKA_}
        printf '%s=%s\n' "$(tr '[:upper:]_' '[:lower:].' <<<"$name")" "$value"
        ;;
    esac
done < <(env -0) >"$config"
java=(java -Djava.awt.headless=true -Dlog4j2.level=INFO -cp "/opt/kafka/libs/*")
if [[ ! -f $KAFKA_LOG_DIRS/meta.properties ]]; then
    "${java[@]}" kafka.tools.StorageTool format -t "$CLUSTER_ID" -c "$config"
fi
read -ra heap <<<"${KAFKA_HEAP_OPTS:--Xmx768m}"
exec "${java[@]}" "${heap[@]}" -XX:+ExitOnOutOfMemoryError kafka.Kafka "$config"
