// exceptions.cpp - throws and catches in every way that C++ has; what comes of it goes into a text.
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include <exception>
#include <stdexcept>
#include <string>
#include <thread>

namespace {

thread_local std::string out;

struct Leaves {
	int number;
	~Leaves()
	{
		out += "~" + std::to_string(number) + (std::uncaught_exceptions() ? "u" : "") + " ";
		try { // one of its own, while another is on its way
			throw number;
		} catch (int caught) {
			out += std::to_string(caught) + " ";
		}
	}
};

int deep(int n)
{
	Leaves leaves{n};

	if (n == 0)
		throw std::runtime_error("deep");
	return deep(n - 1) + 1;
}

void again(int n)
{
	try {
		if (n == 0)
			throw std::out_of_range("again");
		again(n - 1);
	} catch (const std::logic_error &) {
		out += "r";
		throw;
	}
}

void handlers_inside_handlers()
{
	try {
		throw 1;
	} catch (int first) {
		try {
			throw std::string("second");
		} catch (const std::string &second) {
			out += std::to_string(first) + second;
			out += std::current_exception() ? " some " : " none ";
		}
	}
}

void another_threads()
{
	std::exception_ptr kept;

	std::thread([&kept] {
		try {
			deep(2);
		} catch (...) {
			kept = std::current_exception();
		}
	}).join();
	try {
		std::rethrow_exception(kept);
	} catch (const std::exception &error) {
		out += error.what();
	}
}

void *ends(void *text)
{
	try {
		pthread_exit(text); // unwinds too
	} catch (...) {
		*static_cast<std::string *>(text) += "ends ";
		throw;
	}
}

void thread_that_ends()
{
	std::string text;
	pthread_t thread;

	pthread_create(&thread, nullptr, ends, &text);
	pthread_join(thread, nullptr);
	out += text;
}

void throws_where_it_must_not() noexcept
{
	throw 1;
}

void process_that_terminates()
{
	int status = 0;
	pid_t pid = fork();

	if (pid == 0) {
		std::set_terminate([] { _exit(std::current_exception() ? 42 : 43); });
		throws_where_it_must_not();
	}
	waitpid(pid, &status, 0);
	out += " terminated " + std::to_string(WEXITSTATUS(status)) + " ";
}

} // namespace

extern "C" const char *exceptions(void)
{
	out.clear();
	try {
		deep(3);
	} catch (const std::exception &error) {
		out += error.what();
	}
	try {
		again(5);
	} catch (...) {
		out += "... ";
	}
	handlers_inside_handlers();
	another_threads();
	thread_that_ends();
	process_that_terminates();
	out += std::uncaught_exceptions() ? "left over" : "done";
	return out.c_str();
}
