// Says what is wrong with a rule while it is typed. Without this script the button Check does.

const WAIT_MS = 350;
const text = document.querySelector("textarea[data-check]");
const said = document.querySelector("#checked");

if (text && said) {
  let waiting = null;
  let asked = 0;

  const ask = async () => {
    const mine = ++asked;
    const answer = await fetch(`${text.dataset.check}?${new URLSearchParams({ text: text.value })}`).catch(() => null);
    // What was typed meanwhile is asked for anew; who is signed out is told so when they send the form.
    if (mine !== asked || !answer?.ok) return;
    const template = document.createElement("template");
    template.innerHTML = await answer.text(); // nosemgrep: markup-from-values -- a template of ours has escaped it
    if (mine !== asked) return;
    said.replaceChildren(template.content);
    text.setAttribute("aria-invalid", String(said.querySelector(".bad") !== null));
  };

  text.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(ask, WAIT_MS);
  });
}
