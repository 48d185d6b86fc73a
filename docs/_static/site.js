// What scrolls sideways can be reached with the keyboard; what does not scroll is no stop on the way.
function markScrollable() {
  for (const box of document.querySelectorAll("article pre, .table-wrapper, article .math")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}

addEventListener("load", markScrollable);
addEventListener("resize", markScrollable);
addEventListener("toggle", markScrollable, true);
