// Filter, axes of the curves, slider, and a page that loads itself again as it was left.
{
  const all = (selector) => [...document.querySelectorAll(selector)];
  const one = (selector) => document.querySelector(selector);
  const filter = one("#filter"), split = one("#split"), reload = one("#reload");
  all(".controls").forEach((each) => { each.hidden = false; });

  // A run whose row is hidden leaves curves, pictures and settings, too.
  const rows = all("tr[data-words]");
  const sieve = () => {
    const wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (row) => wanted.every((word) => word.includes("=")
      ? row.dataset.settings.includes(`${word}|`) : row.dataset.words.includes(word));
    const kept = new Set(rows.filter(fits).map((row) => row.dataset.run));
    all("[data-run]").forEach((each) => each.toggleAttribute("hidden", !kept.has(each.dataset.run)));
    one("#kept").textContent = wanted.length ? `${kept.size} of ${rows.length} shown` : "";
  };
  filter?.addEventListener("input", sieve);

  const against = all("input[name=against]");
  const choose = () => {
    const chosen = against.find((each) => each.checked)?.value;
    all("[data-against]").forEach((each) => { each.hidden = each.dataset.against !== chosen; });
  };
  against.forEach((each) => each.addEventListener("change", choose));

  // Under what a run made of the images lie the images, and what lies above is cut off.
  for (const image of all("img[data-over]")) {
    const original = one(`img[data-original="${image.dataset.over}"]`);
    const below = original.cloneNode();
    below.alt = "";
    below.removeAttribute("data-original");
    const pair = document.createElement("div");
    pair.className = "pair";
    image.replaceWith(pair);
    pair.append(below, image);
    if (image.dataset.run) pair.dataset.run = image.dataset.run;
  }
  const slide = () => {
    one(".samples").style.setProperty("--split", split.value / 100);
    split.setAttribute("aria-valuetext", `${100 - split.value}% original`);
  };
  split?.addEventListener("input", slide);

  // What a reload would lose; a page in a folder may be unable to keep it, and works all the same.
  const key = `mqvae ${location.pathname}`;
  const heads = all("table.sortable th button");
  const focusable = all("input, button, summary, .scroll");
  const boxes = all(".scroll"), folds = all("details");
  addEventListener("pagehide", () => {
    const sorted = heads.findIndex((each) => each.parentNode.hasAttribute("aria-sort"));
    try {
      sessionStorage.setItem(key, JSON.stringify({
        filter: filter?.value, against: against.findIndex((each) => each.checked),
        split: split?.value, reload: reload?.checked,
        sorted, way: heads[sorted]?.parentNode.getAttribute("aria-sort"),
        left: boxes.map((each) => each.scrollLeft), open: folds.map((each) => each.open),
        focus: focusable.indexOf(document.activeElement), of: focusable.length, top: scrollY,
      }));
    } catch { /* nothing is kept */ }
  });
  let kept = null;
  try {
    const again = performance.getEntriesByType("navigation")[0]?.type === "reload";
    kept = again ? JSON.parse(sessionStorage.getItem(key)) : null;
  } catch { /* nothing was kept */ }
  if (kept) {
    if (filter) filter.value = kept.filter ?? "";
    if (split) split.value = kept.split ?? 100;
    if (reload) reload.checked = kept.reload ?? true;
    if (against[kept.against]) against[kept.against].checked = true;
    const head = heads[kept.sorted];
    for (let i = 0; head && i < 2 && head.parentNode.getAttribute("aria-sort") !== kept.way; i++)
      head.click();
    folds.forEach((each, i) => { each.open = kept.open[i] ?? each.open; });
  }
  if (filter) sieve();
  if (split) slide();
  choose();
  if (kept) {
    boxes.forEach((each, i) => { each.scrollLeft = kept.left[i] ?? 0; });
    if (kept.of === focusable.length) focusable[kept.focus]?.focus({ preventScroll: true });
    history.scrollRestoration = "manual";
    scrollTo(0, kept.top);
  }
  if (reload) setInterval(() => {
    if (reload.checked && !document.hidden) location.reload();
  }, 1000 * reload.dataset.seconds);
}
