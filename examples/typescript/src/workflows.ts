// What the worker's sandbox holds: only workflows, nothing that touches the world.
export { fulfilOrder } from './order/workflow';
export { researchAgent, researchTeam } from './research/workflow';
