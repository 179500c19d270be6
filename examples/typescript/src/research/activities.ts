// What a research agent asks of models, the web and people. Models are slow and often refuse: the retry policies in the
// workflow say how patient to be with which.
import { Context } from '@temporalio/activity';

/** The services an agent needs. `services.ts` has stand-ins. */
export interface Desk {
  plan(question: string): Promise<string[]>;
  read(query: string, onPage: (page: number) => void): Promise<string>;
  write(question: string, notes: string[], remarks: string[]): Promise<string>;
  askReviewer(workflowId: string, draft: string): Promise<void>;
  publish(key: string, draft: string): Promise<string>;
}

export function researchActivities(desk: Desk) {
  return {
    async plan(question: string): Promise<string[]> {
      return await desk.plan(question);
    },

    /** Long: tells by heartbeats that it is alive, so that a dead worker is noticed soon. */
    async read(query: string): Promise<string> {
      return await desk.read(query, (page) => Context.current().heartbeat(page));
    },

    async write(question: string, notes: string[], remarks: string[]): Promise<string> {
      return await desk.write(question, notes, remarks);
    },

    async askReviewer(draft: string): Promise<void> {
      await desk.askReviewer(Context.current().info.workflowExecution!.workflowId, draft);
    },

    async publish(draft: string): Promise<string> {
      return await desk.publish(Context.current().info.workflowExecution!.workflowId, draft);
    },
  };
}

export type ResearchActivities = ReturnType<typeof researchActivities>;
