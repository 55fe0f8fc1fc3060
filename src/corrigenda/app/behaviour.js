() => {
  document.documentElement.lang = "en";
  for (const place of document.querySelectorAll(".status")) {
    place.setAttribute("role", "status");
    place.setAttribute("aria-live", "polite");
  }
}
