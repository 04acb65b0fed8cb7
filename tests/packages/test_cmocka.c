// cmocka: set-up and tear-down frame each case, mocked values arrive in order, and a failing child is seen to fail.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static int open_cases;

static int set_up(void **state)
{
	open_cases++;
	*state = &open_cases;
	return 0;
}

static int tear_down(void **state)
{
	open_cases--;
	return 0;
}

static void cmocka_passes_the_state_of_set_up(void **state)
{
	assert_ptr_equal(*state, &open_cases);
	assert_int_equal(open_cases, 1);
}

static void cmocka_tore_the_case_before_down(void **state)
{
	assert_int_equal(open_cases, 0);
}

static int mocked_read(int fd)
{
	check_expected(fd);
	return mock_type(int);
}

static void cmocka_hands_out_mocked_values_in_order(void **state)
{
	expect_value_count(mocked_read, fd, 7, 2);
	will_return(mocked_read, 11);
	will_return(mocked_read, -5);
	assert_int_equal(mocked_read(7), 11);
	assert_int_equal(mocked_read(7), -5);
}

static void fails_on_purpose(void **state)
{
	assert_int_equal(1, 2);
}

// The exit code is what ctest and tools/check go by. The child's own report is not part of ours.
static void cmocka_reports_failures_by_exit_code(void **state)
{
	int status;
	pid_t child;

	fflush(NULL);
	child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		const struct CMUnitTest tests[] = { cmocka_unit_test(fails_on_purpose) };

		if (!freopen("/dev/null", "w", stdout) || !freopen("/dev/null", "w", stderr))
			_exit(99);
		_exit(cmocka_run_group_tests(tests, NULL, NULL));
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(cmocka_passes_the_state_of_set_up, set_up, tear_down),
		cmocka_unit_test(cmocka_tore_the_case_before_down),
		cmocka_unit_test(cmocka_hands_out_mocked_values_in_order),
		cmocka_unit_test(cmocka_reports_failures_by_exit_code),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
