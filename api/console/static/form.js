// Small help for forms: what is typed is not null, and what is null cannot be typed into by mistake.

for (const box of document.querySelectorAll("input[data-null]")) {
  const field = document.getElementById(box.dataset.null);
  field.addEventListener("input", () => {
    box.checked = false;
  });
}
