// What goes into an order and what comes out of it. Shared by workflow, activities and client.

export interface Order {
  id: string;
  customer: string;
  address: string;
  lines: Array<{ sku: string; quantity: number; cents: number }>;
}

export type Outcome =
  | { state: 'sent'; charge: string; parcel: string; promisedFor: string }
  | { state: 'withdrawn'; reason: string };
