package deadletter

import (
	"context"
	"database/sql"
	"fmt"
)

// Writable writes what changes nothing, and so finds out whether a letter could be stored now.
func (s *Store) Writable(ctx context.Context) error {
	return s.use(ctx, func(conn *sql.Conn) error {
		return transaction(ctx, conn, func() error {
			var version, letters int
			if err := conn.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
				return err
			}
			if err := conn.QueryRowContext(ctx, "SELECT count(*) FROM (SELECT 1 FROM letters LIMIT 1)").Scan(&letters); err != nil {
				return err
			}
			_, err := conn.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d", version))
			return err
		})
	})
}
