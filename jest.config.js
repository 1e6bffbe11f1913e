// Tests run on the compiled output, so they test what ships and need no transformer.
export default {
  testEnvironment: 'node',
  roots: ['<rootDir>/dist/test'],
  testMatch: ['**/*.test.js'],
  // Needs the field's own code: npm run test:peers.
  testPathIgnorePatterns: ['/node_modules/', '<rootDir>/dist/test/peers/'],
  transform: {},
  maxWorkers: 1,
  testTimeout: 120000,
};
