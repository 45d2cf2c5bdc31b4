package deadletter

import (
	"context"
	"database/sql"

	"mosquitto-bouncer/plugin/sqlite"
)

// Writable writes what changes nothing, and so finds out whether a letter could be stored now.
func (s *Store) Writable(ctx context.Context) error {
	return s.use(ctx, func(conn *sql.Conn) error {
		return sqlite.Write(ctx, conn, func() error {
			if _, err := sqlite.Number(ctx, conn, "SELECT count(*) FROM (SELECT 1 FROM letters LIMIT 1)"); err != nil {
				return err
			}
			return sqlite.Probe(ctx, conn)
		})
	})
}
