// The keys of the page, which KEYS in page.py lists, and errors of the player.
(() => {
  const buttons = {
    j: "next", ArrowRight: "next", k: "previous", ArrowLeft: "previous", g: "good", b: "bad", u: "unmark",
    PageDown: "later", PageUp: "earlier",
  };
  const press = (id) => document.getElementById(id)?.click();
  const field = (id) => document.querySelector(`#${id} textarea, #${id} input`);

  document.addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key === "s") {
      event.preventDefault();
      field("caption")?.blur();
      press("save");
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const target = event.target;
    if (target.matches?.("input, textarea, select, [contenteditable]")) {
      if (event.key === "Escape") target.blur();
      return; // letters are text there
    }
    if (event.key === "e") {
      event.preventDefault();
      field("caption")?.focus();
    } else if (event.key === "f") {
      event.preventDefault();
      field("filter")?.focus();
    } else if (event.key === " " && !target.matches?.("button, [role=button], video")) {
      event.preventDefault();
      const video = document.querySelector("#player video");
      if (video) video.paused ? video.play() : video.pause();
    } else if (buttons[event.key]) {
      event.preventDefault();
      press(buttons[event.key]);
    }
  });

  // Errors of a video element do not bubble. The server says in a sentence why it has no film.
  document.addEventListener("error", async (event) => {
    const video = event.target;
    if (!video.matches?.("#player video")) return;
    const answer = await fetch(video.currentSrc || video.src);
    const place = video.parentElement.querySelector(".error");
    if (place) place.textContent = answer.ok ? "The browser cannot play this clip." : await answer.text();
  }, true);
})();
