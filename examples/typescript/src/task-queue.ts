// Where workers and clients of both examples meet.
export const taskQueue = 'examples';
