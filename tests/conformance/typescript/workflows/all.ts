// The bundle of most scenarios: the example's workflows.
export { fulfilOrder } from '../../src/order/workflow';
export { researchAgent, researchTeam } from '../../src/research/workflow';
