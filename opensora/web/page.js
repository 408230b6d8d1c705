// Ctrl+Enter makes the video, wherever the focus is; Escape cancels.
document.addEventListener("keydown", (event) => {
  const press = (id) => document.getElementById(id)?.click();
  if ((event.ctrlKey || event.metaKey) && event.key === "Enter") {
    event.preventDefault();
    // A field tells the page of its text when it loses the focus.
    document.activeElement?.blur();
    setTimeout(() => press("generate"), 50);
  } else if (event.key === "Escape") {
    press("cancel");
  }
});
