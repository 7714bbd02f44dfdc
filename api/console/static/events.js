// The list of live events: newest above, a bounded number of lines, and a pause that lets the server rest too.

const MOST = 200;
const list = document.querySelector("#events");

if (list?.dataset.source) {
  const status = document.querySelector("#live-status");
  const pause = document.querySelector("#pause");
  const counts = { read: 0, matched: 0, hidden: 0, skipped: 0 };
  let source = null;

  const say = (text) => {
    if (status.textContent !== text) status.textContent = text;
  };

  const count = (records) => {
    for (const name of Object.keys(counts)) {
      counts[name] += records[name];
      const place = document.querySelector(`#count-${name}`);
      if (place) place.textContent = counts[name].toLocaleString("en");
    }
  };

  const show = (rows) => {
    // Who reads with the keyboard or has marked text is not to lose the place.
    const held = list.contains(document.activeElement) ? document.activeElement : null;
    const template = document.createElement("template");
    for (const row of rows) {
      template.innerHTML = row; // nosemgrep: markup-from-values -- a template of ours has escaped it
      const line = template.content.firstElementChild;
      line.classList.add("new");
      list.prepend(line);
    }
    while (list.children.length > MOST && !list.lastElementChild.contains(held)) list.lastElementChild.remove();
  };

  const open = () => {
    source = new EventSource(list.dataset.source);
    source.onopen = () => say("live");
    source.onerror = () => say(source.readyState === EventSource.CLOSED ? "not live: too many watch, or it was refused" : "reconnecting");
    source.addEventListener("records", (message) => {
      const records = JSON.parse(message.data);
      count(records);
      show(records.rows);
    });
    source.addEventListener("trouble", (message) => {
      say(JSON.parse(message.data).sentence);
      source.close();
    });
  };
  const close = (why) => {
    source?.close();
    source = null;
    say(why);
  };

  pause.addEventListener("click", () => {
    if (source) close("paused");
    else open();
    pause.setAttribute("aria-pressed", String(!source));
    pause.textContent = source ? "Pause" : "Go on";
  });
  addEventListener("pagehide", () => source?.close());
  pause.hidden = false;
  open();
}
