import { dated } from "./lender.js";

/** What was said last before this page was loaded, of what waits or else of what the server has: {task, verdict, begun}, or null. */
export async function recall(api, home, outbox) {
  const unsent = outbox.standing.at(-1);
  const assignment = unsent?.body.assignment ?? (await lastKept(api, home, outbox));
  if (!assignment) return null;
  const { said, ...task } = dated(await api("GET", `/assignments/${assignment}`));
  return { task, verdict: (unsent?.body ?? said).verdict, begun: unsent?.begun ?? said };
}

async function lastKept(api, home, outbox) {
  const back = outbox.waiting.map(({ body }) => body.assignment); // withdrawn, and the server may not know yet
  const { lines } = await api("GET", `${home}/history?count=${Math.min(100, back.length + 1)}`);
  return lines.find(({ assignment }) => !back.includes(assignment))?.assignment;
}
