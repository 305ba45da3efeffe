// Filter, axes of the curves, slider, and a page that loads itself again as it was left.
{
  const all = (selector) => [...document.querySelectorAll(selector)];
  const one = (selector) => document.querySelector(selector);
  const filter = one("#filter"), split = one("#split"), reload = one("#reload");
  all(".controls").forEach((each) => { each.hidden = false; });

  // A run whose row is hidden leaves curves, pictures and settings, too.
  const rows = all("tr[data-words]");
  const shared = all("table.shared tbody tr").map((row) =>
    [...row.cells].map((cell) => cell.textContent.trim().toLowerCase()).join("="));
  // 1e-3 is 0.001, and a setting may be called by the end of its name.
  const same = (a, b) => a === b || (a !== "" && b !== "" && Number(a) === Number(b));
  const holds = (row, word) => {
    const [name, value] = word.split(/=(.*)/);
    return [...row.dataset.settings.split("|"), ...shared].some((each) => {
      const [key, set] = each.split(/=(.*)/);
      return key.endsWith(name) && same(set, value);
    });
  };
  const sieve = () => {
    const wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (row) => wanted.every((word) => word.includes("=")
      ? holds(row, word) : row.dataset.words.includes(word));
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
  for (const image of all(".samples img[data-over]")) {
    const pair = document.createElement("div");
    pair.className = "pair";
    pair.dataset.run = image.dataset.run;
    image.replaceWith(pair);
    const below = one(`img[data-original="${image.dataset.over}"]`)?.cloneNode();
    if (below) {
      below.alt = "";
      below.removeAttribute("data-original");
      pair.append(below);
    }
    pair.append(image);
  }
  const slide = () => {
    one(".samples").style.setProperty("--split", split.value / 100);
    split.setAttribute("aria-valuetext", `${100 - split.value}% original`);
  };
  split?.addEventListener("input", slide);

  // A codeword that is chosen stands out in the codebook and wherever the images have it.
  const times = (n) => `${n.toLocaleString("en")} time${n === 1 ? "" : "s"}`;
  const numbers = (text) => text ? text.split(" ").map(Number) : [];
  const words = all("input.word");
  const tell = words.map((slider) => {
    const figure = slider.closest("figure"), run = figure.dataset.run;
    const order = numbers(slider.dataset.order), chosen = numbers(slider.dataset.chosen);
    const [width, height] = numbers(slider.dataset.size);
    const [beside, between] = numbers(slider.dataset.gaps);
    const groups = Number(slider.dataset.groups), shown = order.length / groups;
    const across = Math.ceil(Math.sqrt(shown)), down = Math.ceil(shown / across);
    const blocks = Math.ceil(Math.sqrt(groups)), rows = Math.ceil(groups / blocks);
    // From one block, and from one codeword, to the next, in pixels of the picture.
    const block = [(width + between) / blocks, (height + between) / rows];
    const step = [(block[0] - between + beside) / across, (block[1] - between + beside) / down];
    const picture = figure.querySelector(".codebook");
    const frame = picture.appendChild(document.createElement("span"));
    const map = one(`.samples img[data-places][data-run="${run}"]`);
    const places = numbers(map?.dataset.places), [images, high, wide, many] = numbers(map?.dataset.shape);
    const tile = Number(map?.dataset.tile), period = Number(map?.dataset.period);
    const veils = all(`.samples .pair[data-run="${run}"]`).filter(() => map).map((pair) => {
      pair.insertAdjacentHTML("beforeend", `<svg class="veil" aria-hidden="true"
        viewBox="0 0 ${map.width} ${map.height}"><path fill-rule="evenodd"/></svg>`);
      return pair.lastElementChild.firstElementChild;
    });
    const choose = (place) => { slider.value = place + 1; update(); };
    const update = () => {
      const place = slider.value - 1, found = [], among = new Set();
      places.forEach((each, i) => {
        if (each !== place) return;
        const at = Math.floor(i / many), image = Math.floor(at / (high * wide));
        const x = image * period + at % wide * tile / wide;
        const y = Math.floor(at / wide) % high * tile / high;
        found.push(`M${x} ${y}h${tile / wide}v${tile / high}h${-tile / wide}z`);
        among.add(image);
      });
      const whole = `M0 0H${map?.width}V${map?.height}H0z`;
      veils.forEach((veil) => veil.setAttribute("d", place < 0 ? "" : whole + found.join("")));
      frame.hidden = place < 0;
      let text = "none chosen";
      if (place >= 0) {
        const group = Math.floor(place / shown), rank = place % shown;
        const left = group % blocks * block[0] + rank % across * step[0];
        const top = Math.floor(group / blocks) * block[1] + Math.floor(rank / across) * step[1];
        frame.style.cssText = `left:${100 * left / width}%;top:${100 * top / height}%;` +
          `width:${100 * (step[0] - beside) / width}%;height:${100 * (step[1] - beside) / height}%`;
        text = `code ${order[place]}${groups > 1 ? ` of group ${group + 1}` : ""}`;
        if (chosen.length) {
          const share = 100 * chosen[place] / slider.dataset.choices;
          text += chosen[place] ? `, chosen ${times(chosen[place])} ` +
            `(${share.toPrecision(2)}%)` : ", never chosen";
        }
        if (map) text += `; ${times(found.length)} in ${among.size} of the ${images} images`;
      }
      slider.setAttribute("aria-valuetext", text);
      figure.querySelector(".told").textContent = text;
    };
    slider.addEventListener("input", update);
    picture.addEventListener("click", (event) => {
      const box = picture.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width * width;
      const y = (event.clientY - box.top) / box.height * height;
      const group = Math.floor(y / block[1]) * blocks + Math.floor(x / block[0]);
      const column = Math.floor(x % block[0] / step[0]), row = Math.floor(y % block[1] / step[1]);
      const rank = row * across + column, place = group * shown + rank;
      if (group >= groups || column >= across || row >= down || rank >= shown) return;
      choose(place === slider.value - 1 ? -1 : place);
    });
    map?.parentNode.addEventListener("click", (event) => {
      const box = map.getBoundingClientRect();
      const x = event.clientX - box.left, y = event.clientY - box.top;
      const image = Math.floor(x / period), column = Math.floor(x % period / tile * wide);
      const row = Math.floor(y / tile * high);
      if (column >= wide || row >= high || image >= images) return;
      const place = places[((image * high + row) * wide + column) * many];
      choose(place === slider.value - 1 ? -1 : place);
    });
    return update;
  });

  // A picture three times as large, under it what it was made of; Escape or a click closes it.
  const enlarged = document.body.appendChild(document.createElement("dialog"));
  enlarged.addEventListener("click", () => enlarged.close());
  const enlarge = (title, images, at = 0) => {
    const heading = document.createElement("h3");
    heading.textContent = title;
    enlarged.replaceChildren(heading, ...images.map((image) => {
      const copy = image.cloneNode();
      copy.width = 3 * image.width;
      copy.height = 3 * image.height;
      return copy;
    }));
    enlarged.showModal();
    enlarged.scrollTo(3 * at - enlarged.clientWidth / 2, 0);
  };
  for (const head of all(".samples h3, #codebooks h3")) {
    const box = head.closest("#codebooks figure")?.querySelector(".codebook") ?? head.nextElementSibling;
    const images = box.matches("img") ? [box] : [...box.querySelectorAll("img")];
    if (!images.length) continue;
    const title = head.textContent.trim(), button = document.createElement("button");
    button.className = "enlarge";
    button.textContent = "3×";
    button.ariaLabel = `Enlarge ${title}`;
    button.addEventListener("click", () => enlarge(title, images));
    head.prepend(button);
    // Among codes a click chooses one.
    if (!images.some((each) => each.dataset.places || each.closest(".codebook")))
      box.addEventListener("click", (event) => enlarge(title, images, event.offsetX));
  }

  // Pictures come in the order of the rows.
  document.addEventListener("sorted", ({ detail }) => {
    const boxes = all("#codebooks .charts");
    // Images of several data sets stay under their own originals.
    if (all(".samples [data-original]").length < 2) boxes.push(...all(".samples"));
    for (const box of boxes) for (const row of detail)
      box.append(...[...box.children].filter((each) => each.dataset.run === row.dataset.run && row.dataset.run));
  });

  // Which line is whose: the others fade.
  const light = (event) => {
    const run = event.target.closest?.(".legend li, .sortable tr, .chart g[data-run]")?.dataset.run;
    document.body.classList.toggle("lit", run !== undefined);
    all(".chart g.on").forEach((each) => each.classList.remove("on"));
    if (run !== undefined)
      all(`.chart g[data-run="${run}"]`).forEach((each) => each.classList.add("on"));
  };
  document.addEventListener("pointerover", light);
  for (const line of all(".chart g[data-run]")) {
    const title = document.createElementNS(line.namespaceURI, "title");
    title.textContent = one(`tr[data-run="${line.dataset.run}"] .name`)?.textContent.trim();
    line.prepend(title);
  }

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
        split: split?.value, words: words.map((each) => each.value), reload: reload?.checked,
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
    words.forEach((each, i) => { each.value = kept.words?.[i] ?? 0; });
    if (against[kept.against]) against[kept.against].checked = true;
    const head = heads[kept.sorted];
    for (let i = 0; head && i < 2 && head.parentNode.getAttribute("aria-sort") !== kept.way; i++)
      head.click();
    folds.forEach((each, i) => { each.open = kept.open[i] ?? each.open; });
  }
  if (filter) sieve();
  if (split) slide();
  tell.forEach((update) => update());
  choose();
  if (kept) {
    boxes.forEach((each, i) => { each.scrollLeft = kept.left[i] ?? 0; });
    if (kept.of === focusable.length) focusable[kept.focus]?.focus({ preventScroll: true });
    history.scrollRestoration = "manual";
    scrollTo(0, kept.top);
  }
  addEventListener("beforeprint", () => folds.forEach((each) => { each.open = true; }));
  if (reload) setInterval(() => {
    if (reload.checked && !document.hidden) location.reload();
  }, 1000 * reload.dataset.seconds);
}
