// Puts what a stream says where its name stands: [data-live] is text, [data-bind] is attributes.
// <body data-stream="/console/live/..."> names the stream; without one, nothing here is live.

const index = new Map();

function remember(name, put) {
  if (!index.has(name)) index.set(name, []);
  index.get(name).push(put);
}

for (const element of document.querySelectorAll("[data-live]")) {
  remember(element.dataset.live, (text) => {
    if (element.textContent !== text) element.textContent = text;
  });
}
for (const element of document.querySelectorAll("[data-bind]")) {
  for (const pair of element.dataset.bind.split(";")) {
    const at = pair.indexOf("=");
    remember(pair.slice(at + 1), (text) => element.setAttribute(pair.slice(0, at), text));
  }
}

const status = document.querySelector("#live-status");
const say = (text) => {
  if (status && status.textContent !== text) status.textContent = text;
};

const address = document.body.dataset.stream;
if (address) {
  let source;
  const open = () => {
    source = new EventSource(address);
    source.onopen = () => say("live");
    source.onerror = () => say(source.readyState === EventSource.CLOSED ? "not live: reload to try again" : "reconnecting");
    source.onmessage = (message) => {
      for (const [name, text] of Object.entries(JSON.parse(message.data))) {
        for (const put of index.get(name) ?? []) put(text);
      }
    };
    source.addEventListener("trouble", (message) => say(JSON.parse(message.data).sentence));
    source.addEventListener("reload", () => {
      source.close();
      location.reload();
    });
  };
  open();
  // A page that nobody sees asks for nothing.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) source.close();
    else if (source.readyState === EventSource.CLOSED) open();
  });
  addEventListener("pagehide", () => source.close());
}
