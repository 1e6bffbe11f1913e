// Tests run on the compiled output, so they test what ships and need no transformer.
export default {
  testEnvironment: 'node',
  roots: ['<rootDir>/dist/test'],
  testMatch: ['**/*.test.js'],
  transform: {},
  maxWorkers: 1,
  testTimeout: 120000,
};
