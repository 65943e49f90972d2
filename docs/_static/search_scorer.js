/* The order of what the search finds: the guide explains, the reference and the results list. */
var Scorer = {
  score: ([page, title, anchor, description, score, file, kind]) => {
    if (kind === "index") return score;
    // The name itself, on its own page
    if (kind === "object" && score >= Scorer.objNameMatch && page === `api/${title}`) return score + 30;
    if (page.startsWith("results/")) return score - 10;
    if (["changelog", "contributing"].includes(page)) return score - 10;
    if (page.startsWith("api/")) return score;
    if (page.startsWith("auto_examples/")) return score + 5;
    return score + 12;
  },

  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: { 0: 0, 1: 0, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
