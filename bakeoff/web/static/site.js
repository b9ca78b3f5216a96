// A comparison that runs: its state and progress as they change, and the page's part below them anew when there is more.
"use strict";

(() => {
  const live = document.getElementById("live");
  if (!live?.dataset.events) return;
  const secondsBetween = 5;
  const state = document.getElementById("state");
  const source = new EventSource(live.dataset.events);
  let before = null;
  let loaded = Date.now();
  let loading = null;

  async function renew() {
    const response = await fetch(location.href);
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const fresh = page.getElementById("live");
    if (!response.ok || !fresh) throw new Error(`the page answered ${response.status}`);
    const focused = live.contains(document.activeElement) ? document.activeElement.id : "";
    const scrolled = [...live.querySelectorAll(".scroll[id]")].map((one) => [one.id, one.scrollLeft]);
    live.replaceChildren(...fresh.childNodes);
    loaded = Date.now();
    for (const [id, left] of scrolled) {
      const one = document.getElementById(id);
      if (one) one.scrollLeft = left;
    }
    if (focused) (document.getElementById(focused) ?? document.getElementById("main")).focus({ preventScroll: true });
  }

  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED) setTimeout(() => location.reload(), secondsBetween * 1000);
  };

  source.onmessage = async (message) => {
    const news = JSON.parse(message.data);
    const ended = !["waiting", "starting", "running"].includes(news.state);
    if (ended) source.close();
    const changed = before && (news.state !== before.state || news.over !== before.over);
    const bar = document.getElementById("over");
    if (bar && news.total) {
      bar.max = news.total;
      bar.value = news.over + (news.trains ? news.fraction : 0);
      const label = document.querySelector('label[for="over"]');
      if (label && news.what) label.textContent = news.what;
    }
    before = news;
    if (ended) {
      await loading;
      await renew().catch(() => location.reload());
    } else if (!loading && (changed || Date.now() - loaded > secondsBetween * 1000)) {
      loading = renew().catch(() => {}).finally(() => (loading = null));
      await loading;
    }
    if (state.textContent !== news.sentence) state.firstElementChild.textContent = news.sentence;
  };
})();
