// Where workers and clients of both examples meet.
export const taskQueue = 'examples';

export const address = process.env.TEMPORAL_ADDRESS ?? '127.0.0.1:7233';

// Ends the program with a question that most often is the answer.
export async function connected<T>(connecting: Promise<T>): Promise<T> {
  try {
    return await connecting;
  } catch (error) {
    console.error(`Is a server running at ${address}? Start one with: cargo run --release -- dev`);
    throw error;
  }
}
